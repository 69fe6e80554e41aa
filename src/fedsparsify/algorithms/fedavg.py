"""FedAvg: dense training, averaged; the reference that the paper measures against.

McMahan et al., *Communication-Efficient Learning of Deep Networks from Decentralized Data*, arXiv 1602.05629.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..merge import average_of, merge_models
from ..state import ClientUpdate, ModelState, ServerState
from .method import Method, Tune

__all__ = ["fedavg"]


def fedavg() -> Method:
    """Return FedAvg: w = sum p_k w_k, nothing pruned."""

    def client_update(model: ModelState, t: int, tune: Tune) -> ModelState:
        return tune(model)

    def server_update(state: ServerState, updates: Iterable[ClientUpdate], t: int) -> ServerState:
        return ServerState(t, merge_models(updates, average_of, state.model.mask))

    return Method("fedavg", client_update, server_update)
