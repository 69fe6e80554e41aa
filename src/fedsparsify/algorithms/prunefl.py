"""PruneFL: prune on one client first, then let all readjust the mask: what lowers the loss most for its time stays.

Jiang et al., *Model Pruning Enables Efficient Federated Learning on Edge Devices*, arXiv 1909.12326.

Deviations: the number of parameters is the sparsity's (PruneFL lets it follow from the time a round may take), and the
share that may move stays the same (the authors' code lets it decay); the time of a parameter is that of training only,
without sending it, as the run's calibration measured it, and 1 for all where the compiled trainer is not used; squared
gradients come from a pass over ``batches`` of a client's data at the end of its training, not from every step of it;
the initial pruning is one readjustment after the first client's epochs, not many until the size settles.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..errors import ArgumentError
from ..layout import ParameterLayout
from ..merge import VectorAverage, average_of, merge_models
from ..purge import exact_mask, kept
from ..schedules import StepSchedule
from ..state import ClientUpdate, Floats, Mask, ModelState, ServerState
from .densities import counts_of, keep_by_layer, uniform
from .fedavg import average
from .method import Local, Method, Result
from .saliency import check_batches

__all__ = ["prunefl"]


def prunefl(
    sparsity: float,
    layout: ParameterLayout,
    every: int = 10,
    movable: float = 0.3,
    batches: int = 8,
) -> Method:
    """Return PruneFL.

    In round 0 one client trains the dense network. Then and every ``every`` rounds, clients also send
    importance_k = mean(g_k^2) / (seconds that a parameter of that layer costs), for pruned parameters too. The server
    keeps the share 1 - ``movable`` of each matrix's places for its survivors of largest magnitude, all places of
    one-dimensional tensors, and gives the others to the largest averages of importance in the whole network. In round 0
    places are in proportion to size.

    Args:
        sparsity: S_T, from round 0 on.
        layout: the network's layout.
        every: rounds between readjustments.
        movable: share of the survivors that a readjustment may replace, in (0, 1].
        batches: how many batches of a client's data gradients are taken over; 0 for all.

    Raises:
        ArgumentError: an option is out of its range.
    """
    if every < 1:
        raise ArgumentError(f"method.every = {every} must be at least 1 round")
    if not 0 < movable <= 1:
        raise ArgumentError(f"method.movable = {movable} must be more than 0 and at most 1")
    used = check_batches(batches)
    count = kept(layout.n, sparsity)
    matrices = np.array([len(slot.shape) > 1 for slot in layout.parameters])

    def sends(t: int) -> tuple[str, ...]:
        return ("importance",) if t % every == 0 else ()

    def client_update(model: ModelState, t: int, local: Local) -> Result:
        tuned = local.tune(model)
        if not sends(t):
            return tuned
        importance = local.gradient(tuned, batches=used, squared=True)
        # Relative to the cheapest layer: an importance of seconds would fall out of float32's range.
        seconds = local.layer_seconds()
        for slot, cost in zip(layout.parameters, seconds, strict=True):
            importance[slot.span] *= np.float32(min(seconds) / cost)
        return tuned, {"importance": importance}

    def server_update(state: ServerState, updates: Iterable[ClientUpdate], t: int) -> ServerState:
        if not sends(t):
            return average(state, updates, t)
        importance = VectorAverage("importance")
        merged = merge_models(importance.of(updates), average_of, state.model.mask)
        return ServerState(t, merged.under(readjusted(merged, importance.value, t)))

    def readjusted(model: ModelState, importance: Floats, t: int) -> Mask:
        places = counts_of(model.mask, layout) if t else uniform(layout, sparsity)
        staying = places - np.where(matrices, np.floor(movable * places), 0).astype(np.int64)
        strong = keep_by_layer(np.abs(model.w), staying, layout, model.mask)
        return strong | exact_mask(importance, count - int(np.count_nonzero(strong)), ~strong)

    return Method(
        "prunefl",
        client_update,
        server_update,
        StepSchedule(sparsity, 0),
        regrows=True,
        starts="one client",
        sends=sends,
    )
