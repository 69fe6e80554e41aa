"""FedAvg with momentum on the clients, the paper's baseline "MFL".

Liu, Chen, Chen and Zhang, *Accelerating Federated Learning via Momentum Gradient Descent*, arXiv 1910.03197.

Deviation: clients are stateless, so momentum starts at zero in every round. MFL also averages the clients' momenta and
hands the mean on, which would double what travels.
"""

from __future__ import annotations

from ..errors import ArgumentError
from ..state import ModelState
from .fedavg import average
from .method import Local, Method

__all__ = ["fedavg_momentum"]


def fedavg_momentum(momentum: float = 0.5) -> Method:
    """Return FedAvg whose clients train with momentum, whatever ``train.momentum`` says.

    Args:
        momentum: in (0, 1); 0.5 as in MFL's experiments.

    Raises:
        ArgumentError: it is out of its range.
    """
    if not 0 < momentum < 1:
        raise ArgumentError(f"method.momentum = {momentum} must be more than 0 and less than 1")

    def client_update(model: ModelState, t: int, local: Local) -> ModelState:
        return local.tune(model, momentum=momentum)

    return Method("fedavg-momentum", client_update, average, merges="average")
