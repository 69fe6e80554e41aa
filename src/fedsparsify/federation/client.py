"""What a client does with a broadcast: decode, tune, purge, encode. Simulator and deployment share it."""

from __future__ import annotations

import time

from ..algorithms import Method
from ..data import Dataset
from ..errors import WireError
from ..state import ModelState
from ..tune import Tuner
from ..wire import Kind, Message, decode, encode

__all__ = ["client_round"]


def client_round(broadcast: bytes, *, client: int, data: Dataset, method: Method, tuner: Tuner, seed: int) -> bytes:
    """Answer one broadcast with an encoded update.

    Args:
        broadcast: the server's message.
        client: index of this client.
        data: its examples, which never leave it.
        method: the federated method; the server runs the same one.
        tuner: trains the network on this worker.
        seed: the run's seed.

    Raises:
        WireError: the broadcast is malformed, or is no broadcast.
    """
    received = decode(broadcast, tuner.layout)
    if received.kind != Kind.BROADCAST:
        raise WireError(f"header: a client expects a broadcast, not a message of kind {received.kind.name.lower()}")
    metrics: dict[str, float] = {}

    def tune(model: ModelState) -> ModelState:
        started = time.perf_counter()
        tuned = tuner.tune(model, data, seed=seed, round=received.round, client=client)
        seconds = time.perf_counter() - started
        metrics.update(loss=tuned.loss, seconds=seconds, native=float(tuned.backend == "native"))
        return tuned.model

    model = method.client_update(received.model, received.round, tune)
    update = Message(Kind.UPDATE, received.round, model, client, len(data), metrics)
    return encode(update, tuner.layout, base=received.model.mask)
