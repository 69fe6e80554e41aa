"""What a federated method is: two pure functions over explicit state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from ..schedules import Schedule
from ..state import ClientUpdate, Floats, ModelState, ServerState

__all__ = ["ClientUpdateFunction", "Local", "Method", "Result", "ServerUpdateFunction"]


class Local(Protocol):
    """What a method may ask of the client that it runs on; the client's data never leave it.

    Asked twice for the same in one round, :meth:`gradient` and :meth:`curvature` use the same batches.
    """

    @property
    def epochs(self) -> int:
        """Local epochs of a round, as configured."""
        ...

    def tune(
        self, model: ModelState, *, epochs: int | None = None, proximal: float = 0.0, momentum: float | None = None
    ) -> ModelState:
        """Train under the model's mask: only survivors move.

        Args:
            model: where to start.
            epochs: how many instead of the configured number; a second call in a round goes on in another order.
            proximal: mu of the term mu/2 ||w - w_0||^2 in the loss, w_0 being where training starts.
            momentum: of SGD, instead of the configured one.
        """
        ...

    def gradient(self, model: ModelState, *, batches: int | None = None, squared: bool = False) -> Floats:
        """Return float32[n], the mean gradient of the loss, pruned positions included.

        Args:
            model: where to take it.
            batches: how many of the client's batches to use; None for all of its data.
            squared: the mean over batches of the squared gradient of each, instead.
        """
        ...

    def curvature(self, model: ModelState, *, batches: int | None = None) -> Floats:
        """Return float32[n], the mean over batches of H g: how the squared norm of the gradient changes, halved."""
        ...

    def random(self) -> np.random.Generator:
        """Return a generator of this round and client; every call starts it anew."""
        ...

    def layer_seconds(self) -> list[float]:
        """Return for each tensor of the layout the seconds that one of its parameters costs in a step.

        As measured on this machine for the native kernels; where they do not cover the network, 1 for all.
        """
        ...


Result = ModelState | tuple[ModelState, Mapping[str, Floats]]
"""The client's model, or with it named float32[n] vectors that the method's ``sends`` announces."""

ClientUpdateFunction = Callable[[ModelState, int, Local], Result]
"""(broadcast model, round t, the client) -> what it sends back."""

ServerUpdateFunction = Callable[[ServerState, Iterable[ClientUpdate], int], ServerState]
"""(state after round t-1, usable updates in client order, round t) -> state after round t."""


def _nothing(t: int) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Method:
    """A federated method; the engine owns the loop, the transport and the failures.

    Attributes:
        name: as configurations name it.
        client_update: runs on a client.
        server_update: runs on the server; may consume the updates as a stream, once.
        schedule: round -> target sparsity, or None where the method does not prune.
        exact: whether the merged model has exactly the scheduled number of survivors.
        regrows: whether parameters that were pruned may come back; else updates with such parameters are refused, and
            the server may not bring any back either.
        averages: whether a single client's parameters are the merged ones; not so where the server has an optimiser.
        starts: how the model that round 1 broadcasts comes about: ``"dense"``, as it was initialised; or by a round 0
            of both functions before training, with nobody but the server, one client, or as many as in any round.
        sends: round -> names of the float32[n] vectors that an update carries beside its model.
        merges: what the server needs of the updates, for merging under encryption: their ``"average"`` sum p_k w_k
            alone; with it the masks' ``"vote"``, as :func:`~fedsparsify.merge.majority_of`; or each, ``"models"``.
            Where it is not ``"models"``, ``server_update`` must make the same of one update that holds the average.
    """

    name: str
    client_update: ClientUpdateFunction
    server_update: ServerUpdateFunction
    schedule: Schedule | None = None
    exact: bool = True
    regrows: bool = False
    averages: bool = True
    starts: Literal["dense", "server", "one client", "participants"] = "dense"
    sends: Callable[[int], tuple[str, ...]] = _nothing
    merges: Literal["average", "vote", "models"] = "models"
