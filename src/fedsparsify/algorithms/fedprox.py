"""FedProx: clients are held back from drifting away from the broadcast model.

Li et al., *Federated Optimization in Heterogeneous Networks*, arXiv 1812.06127.

Deviations: every client trains all its epochs (the paper also lets slow ones do less), and as in FedAvg clients are
weighted by their examples in the average and drawn uniformly, as the paper's experiments do.
"""

from __future__ import annotations

from ..errors import ArgumentError
from ..state import ModelState
from .fedavg import average
from .method import Local, Method

__all__ = ["fedprox"]


def fedprox(proximal: float = 0.01) -> Method:
    """Return FedProx: FedAvg with mu/2 ||w - w_t||^2 added to each client's loss.

    Args:
        proximal: mu, at least 0; 0 is FedAvg.

    Raises:
        ArgumentError: mu is negative or not finite.
    """
    if not 0 <= proximal < float("inf"):
        raise ArgumentError(f"method.proximal = {proximal} must be at least 0 and finite")

    def client_update(model: ModelState, t: int, local: Local) -> ModelState:
        return local.tune(model, proximal=proximal)

    return Method("fedprox", client_update, average, merges="average")
