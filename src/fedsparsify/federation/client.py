"""What a client does with a broadcast: decode, tune, purge, encode. Simulator and deployment share it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..algorithms import Method
from ..data import Dataset
from ..layout import ParameterLayout
from ..randomness import derive
from ..state import Floats, ModelState
from ..tune import Evaluation, GradientOf, Tuner
from ..wire import Coding, Kind, Message, Reference, decode, encode
from .links import mean_step, step_between

__all__ = ["SHARD", "Client", "Held", "Received", "evaluate", "receive", "whole"]


SHARD = 2000
"""Examples that are evaluated at once: a fixed number, for sums of floats must not depend on how many workers do it."""


def evaluate(tuner: Tuner, model: ModelState, test: Dataset) -> Mapping[str, Any]:
    """Return what :meth:`.simulator.Simulator.evaluate` returns, to the last bit."""
    starts = range(0, len(test), SHARD)
    return whole((tuner.evaluate(model, test.part(start, start + SHARD)) for start in starts), test)


def whole(parts: Iterable[Evaluation], test: Dataset) -> Mapping[str, Any]:
    """Return the figures of a whole test set, and of its groups, of those of its parts in order."""
    total: Evaluation | None = None
    for part in parts:
        total = part if total is None else total + part
    assert total is not None  # no test set is empty
    groups = total.by_group(test.group_names)
    return {**total.metrics, **({"groups": groups} if groups else {})}


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


class _Local:
    """What a method may ask of one client in one round, see :class:`~fedsparsify.algorithms.Local`.

    Attributes:
        metrics: figures on the training so far.
    """

    def __init__(self, tuner: Tuner, data: Dataset, seed: int, round: int, client: int) -> None:
        self._tuner = tuner
        self._data = data
        self._seed, self._round, self._client = seed, round, client
        self._times = 0
        self.metrics: dict[str, float] = {"seconds": 0.0}

    @property
    def epochs(self) -> int:
        return self._tuner.settings.epochs

    def tune(
        self, model: ModelState, *, epochs: int | None = None, proximal: float = 0.0, momentum: float | None = None
    ) -> ModelState:
        given = {"epochs": epochs, "momentum": momentum}
        changes = {"proximal": proximal, **{key: value for key, value in given.items() if value is not None}}
        with self._timed():
            tuned = self._tuner.tune(
                model,
                self._data,
                seed=self._seed,
                round=self._round,
                client=self._client,
                again=self._times,
                changes=changes,
            )
        self._times += 1
        self.metrics.update(loss=tuned.loss, native=float(tuned.backend == "native"))
        return tuned.model

    def gradient(self, model: ModelState, *, batches: int | None = None, squared: bool = False) -> Floats:
        return self._gradient(model, batches, "squared" if squared else "plain")

    def curvature(self, model: ModelState, *, batches: int | None = None) -> Floats:
        return self._gradient(model, batches, "curvature")

    def layer_seconds(self) -> list[float]:
        return self._tuner.layer_seconds()

    def random(self) -> np.random.Generator:
        return derive(self._seed, "method", round=self._round, client=self._client)

    def _gradient(self, model: ModelState, batches: int | None, of: GradientOf) -> Floats:
        with self._timed():
            return self._tuner.gradient(
                model, self._data, seed=self._seed, round=self._round, client=self._client, batches=batches, of=of
            )

    @contextmanager
    def _timed(self) -> Iterator[None]:
        # On a CPU what counts is this thread's own time, so that other work on the machine is not taken for training.
        clock = time.thread_time if self._tuner.device.type == "cpu" else time.perf_counter
        started = clock()
        yield
        self.metrics["seconds"] += clock() - started


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
        local = _Local(self.tuner, self.data, self.seed, broadcast.round, self.index)
        start = broadcast.model
        result = self.method.client_update(start, broadcast.round, local)
        trained, vectors = (result, {}) if isinstance(result, ModelState) else result
        trend = held.trend if broadcast.remember and broadcast.refers else None
        reference = received.reference.with_trend(trend)
        rounds = self.coding != "float32"
        wanted, residual = trained, held.residual
        if rounds and residual is not None:
            # Of what was left out only what was broadcast: whoever forgets the rest must give the same bits.
            residual = ModelState.of_values(residual.at(start.mask), start.mask)
            values = trained.values + residual.at(trained.mask)
            wanted = ModelState.of_values(values, trained.mask, trained.buffers)
        message = Message(
            Kind.UPDATE, broadcast.round, wanted, self.index, len(self.data), local.metrics, memory=vectors
        )
        update = encode(message, layout, reference, self.coding)
        if not np.isfinite(wanted.values).all():  # the server will refuse it, and forget
            return update, Held(received.reference, residual=residual)
        sent = wanted
        if rounds:
            sent = decode(update, layout, reference).model
            left_out = ModelState.of_values(wanted.values - sent.values, sent.mask)
            residual = ModelState.of_values(left_out.at(start.mask), start.mask)
        if broadcast.remember:
            trend = mean_step(trend, start, sent)
        return update, Held(received.reference, trend, residual)
