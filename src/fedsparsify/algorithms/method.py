"""What a federated method is: two pure functions over explicit state."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..schedules import Schedule
from ..state import ClientUpdate, ModelState, ServerState

__all__ = ["ClientUpdateFunction", "Method", "ServerUpdateFunction", "Tune"]

Tune = Callable[[ModelState], ModelState]
"""Local training under the given model's mask."""

ClientUpdateFunction = Callable[[ModelState, int, Tune], ModelState]
"""(broadcast model, round t, tune) -> the client's model."""

ServerUpdateFunction = Callable[[ServerState, Iterable[ClientUpdate], int], ServerState]
"""(state after round t-1, usable updates in client order, round t) -> state after round t."""


@dataclass(frozen=True)
class Method:
    """A federated method; the engine owns the loop, the transport and the failures.

    Attributes:
        name: as configurations name it.
        client_update: runs on a client.
        server_update: runs on the server; may consume the updates as a stream, once.
        schedule: round -> target sparsity, or None where the method does not prune.
        exact: whether the merged model has exactly the scheduled number of survivors.
    """

    name: str
    client_update: ClientUpdateFunction
    server_update: ServerUpdateFunction
    schedule: Schedule | None = None
    exact: bool = True
