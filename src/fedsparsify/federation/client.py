"""What a client does with a broadcast: decode, tune, purge, encode. Simulator and deployment share it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from ..algorithms import Method
from ..data import Dataset
from ..layout import ParameterLayout
from ..state import ModelState
from ..tune import Tuner
from ..wire import Coding, Kind, Message, Reference, decode, encode
from .links import mean_step, step_between

__all__ = ["Client", "Held", "Received", "receive"]


@dataclass(frozen=True, eq=False)
class Held:
    """What a client keeps between rounds: a cache, but for the residual of rounded updates.

    Attributes:
        reference: the last broadcast, and the step that led to it; None if there was none.
        trend: the mean of the client's own last steps; None if unknown.
        residual: what rounding has kept out of the client's updates so far; None where nothing is rounded.
    """

    reference: Reference | None = None
    trend: ModelState | None = None
    residual: ModelState | None = None


@dataclass(frozen=True, eq=False)
class Received:
    """A decoded broadcast.

    Attributes:
        message: the broadcast.
        reference: what the next broadcast may be coded against.
    """

    message: Message
    reference: Reference


def receive(data: bytes, held: Reference | None, layout: ParameterLayout) -> Received:
    """Decode a broadcast on a client that may hold an earlier one.

    Raises:
        StaleReferenceError: it was coded against another one than the client holds.
        WireError: it is malformed, or no broadcast.
    """
    message = decode(data, layout, held, Kind.BROADCAST)
    drift = step_between(held.model, message.model) if message.refers and held is not None else None
    # Survivors only: training makes a dense copy of the message's own model, which must not be kept with this.
    m = message.model
    return Received(message, Reference(ModelState.of_values(m.values, m.mask, m.buffers), layout, drift))


@dataclass(frozen=True, eq=False)
class Client:
    """One client, but for what it keeps between rounds.

    Attributes:
        index: which one it is.
        data: its examples, which never leave it.
        method: the federated method; the server runs the same one.
        tuner: trains the network on this worker.
        seed: the run's seed.
        coding: how its updates are rounded; ``float32`` is not at all.
    """

    index: int
    data: Dataset
    method: Method
    tuner: Tuner
    seed: int
    coding: Coding = "float32"

    def answer(self, received: Received, held: Held) -> tuple[bytes, Held]:
        """Train on a broadcast.

        Args:
            received: the broadcast.
            held: what the client has kept.

        Returns:
            The encoded update, and what to keep for the next round.
        """
        broadcast, layout = received.message, self.tuner.layout
        metrics: dict[str, float] = {}

        def tune(model: ModelState) -> ModelState:
            started = time.perf_counter()
            tuned = self.tuner.tune(model, self.data, seed=self.seed, round=broadcast.round, client=self.index)
            seconds = time.perf_counter() - started
            metrics.update(loss=tuned.loss, seconds=seconds, native=float(tuned.backend == "native"))
            return tuned.model

        start = broadcast.model
        trained = self.method.client_update(start, broadcast.round, tune)
        trend = held.trend if broadcast.remember and broadcast.refers else None
        reference = received.reference.with_trend(trend)
        rounds = self.coding != "float32"
        wanted = trained
        if rounds and held.residual is not None:
            values = trained.values + held.residual.at(trained.mask)
            wanted = ModelState.of_values(values, trained.mask, trained.buffers)
        message = Message(Kind.UPDATE, broadcast.round, wanted, self.index, len(self.data), metrics)
        update = encode(message, layout, reference, self.coding)
        sent, residual = wanted, held.residual
        if not np.isfinite(wanted.values).all():  # the server will refuse it, and forget
            return update, Held(received.reference, residual=residual)
        if rounds:
            sent = decode(update, layout, reference).model
            residual = ModelState.of_values(wanted.values - sent.values, sent.mask)
        if broadcast.remember:
            trend = mean_step(trend, start, sent)
        return update, Held(received.reference, trend, residual)
