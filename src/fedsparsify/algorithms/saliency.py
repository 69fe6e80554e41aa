"""Masks at initialisation: score every parameter before training, keep the best, and train those alone.

What SNIP, GraSP and SSFL share: round 0 asks clients for scores, the server averages them and masks the initial model,
and from round 1 on it is FedAvg under that mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np

from ..errors import ArgumentError
from ..layout import ParameterLayout
from ..merge import VectorAverage
from ..purge import Purge
from ..schedules import StepSchedule
from ..state import ClientUpdate, Floats, ModelState, ServerState
from .fedavg import average
from .method import Local, Method, Result

__all__ = ["Clients", "check_batches", "mask_at_start", "matrices_after_vectors"]

Clients = Literal["one", "all"]


def mask_at_start(
    name: str,
    score: Callable[[ModelState, Local], Floats],
    sparsity: float,
    select: Purge,
    layout: ParameterLayout,
    clients: str,
) -> Method:
    """Return a method that trains under one mask, chosen by scores of the initial parameters.

    Args:
        name: the method's name.
        score: (initial model, client) -> float32[n]; the largest averages survive.
        sparsity: S_T, from round 0 on.
        select: (scores, s, m) -> m'.
        layout: the network's layout.
        clients: ``"one"`` client scores, or ``"all"`` that take part in a round do, weighted by their examples.

    Raises:
        ArgumentError: ``clients`` is another word.
    """
    if clients not in ("one", "all"):
        raise ArgumentError(f'method.clients = "{clients}" must be "one" or "all"')

    def client_update(model: ModelState, t: int, local: Local) -> Result:
        return (model, {"score": score(model, local)}) if t == 0 else local.tune(model)

    def server_update(state: ServerState, updates: Iterable[ClientUpdate], t: int) -> ServerState:
        if t > 0:
            return average(state, updates, t)
        scores = VectorAverage("score")
        for _ in scores.of(updates):
            pass
        ranked = matrices_after_vectors(scores.value, layout)
        return ServerState(t, state.model.under(select(ranked, sparsity, state.model.mask)))

    return Method(
        name,
        client_update,
        server_update,
        StepSchedule(sparsity, 0),
        starts="one client" if clients == "one" else "participants",
        sends=lambda t: ("score",) if t == 0 else (),
    )


def matrices_after_vectors(scores: Floats, layout: ParameterLayout) -> Floats:
    """Rank all one-dimensional tensors first: biases start at 0, so scores that multiply by w know nothing of them.

    The papers of these methods leave such tensors unpruned; here they count in the budget. Among them scores decide.
    """
    ranked = scores.copy()
    for slot in layout.parameters:
        if len(slot.shape) < 2:
            ranked[slot.span] += np.ptp(scores) + np.float32(1)
    return ranked


def check_batches(batches: int) -> int | None:
    """Return how many batches a gradient is taken over, None for all of a client's data.

    Raises:
        ArgumentError: the number is negative.
    """
    if batches < 0:
        raise ArgumentError(f"method.batches = {batches} must be at least 0 (0 is all of a client's data)")
    return batches or None
