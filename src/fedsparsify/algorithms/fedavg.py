"""FedAvg: dense training, averaged; the reference that the paper measures against.

McMahan et al., *Communication-Efficient Learning of Deep Networks from Decentralized Data*, arXiv 1602.05629.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..merge import average_of, merge_models
from ..state import ClientUpdate, ModelState, ServerState
from .method import Local, Method

__all__ = ["average", "fedavg"]


def fedavg() -> Method:
    """Return FedAvg: w = sum p_k w_k, nothing pruned."""

    def client_update(model: ModelState, t: int, local: Local) -> ModelState:
        return local.tune(model)

    return Method("fedavg", client_update, average, merges="average")


def average(state: ServerState, updates: Iterable[ClientUpdate], t: int) -> ServerState:
    """Merge by w = sum p_k w_k, under the mask as it is: the server's part of every method that leaves masks alone."""
    return ServerState(t, merge_models(updates, average_of, state.model.mask), state.memory)
