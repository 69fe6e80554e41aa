"""FedDST: sparse from the first round; clients prune and regrow connections, and vote by what they keep.

Bibikar, Vikalo, Wang and Chen, *Federated Dynamic Sparse Training*, arXiv 2112.09824.

Deviations: the readjustment comes before a client's last epoch, which trains what has grown (with a single epoch,
after it); gradients for regrowth are taken over ``batches`` of the client's data instead of the last batch it happened
to see; momentum starts anew after the readjustment; biases and normalisation parameters are kept whole and stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from ..errors import ArgumentError
from ..layout import ParameterLayout
from ..merge import merge_models, nonzero_of
from ..schedules import StepSchedule
from ..state import ClientUpdate, ModelState, ServerState
from .densities import counts_of, erdos_renyi_kernel, keep_by_layer
from .method import Local, Method
from .saliency import check_batches

__all__ = ["feddst"]


def feddst(
    sparsity: float,
    layout: ParameterLayout,
    rounds: int,
    every: int = 10,
    ratio: float = 0.1,
    stop: float = 0.5,
    min_votes: int = 1,
    batches: int = 8,
) -> Method:
    """Return FedDST.

    The server starts from the largest initial weights of each layer, with layer densities by Erdos-Renyi-kernel. Every
    ``every`` rounds each client replaces, layer by layer, a share alpha_t of its connections, those of least magnitude,
    by the pruned ones of largest gradient; alpha_t = ratio/2 (1 + cos(pi t / t_stop)). The server averages each
    parameter over those who kept it, and keeps each layer's number of parameters of largest magnitude.

    Args:
        sparsity: S_T, from round 0 on.
        layout: the network's layout.
        rounds: T.
        every: rounds between readjustments.
        ratio: alpha, in (0, 1).
        stop: fraction of T after which masks stay, in (0, 1].
        min_votes: clients who must have kept a parameter for it to be kept before others.
        batches: how many batches of a client's data gradients are taken over; 0 for all.

    Raises:
        ArgumentError: an option is out of its range.
    """
    if every < 1:
        raise ArgumentError(f"method.every = {every} must be at least 1 round")
    if not 0 < ratio < 1:
        raise ArgumentError(f"method.ratio = {ratio} must be more than 0 and less than 1")
    if not 0 < stop <= 1:
        raise ArgumentError(f"method.stop = {stop} must be more than 0 and at most 1")
    if min_votes < 1:
        raise ArgumentError(f"method.min_votes = {min_votes} must be at least 1")
    used, last = check_batches(batches), stop * rounds
    schedule = StepSchedule(sparsity, 0)

    def readjusts(t: int) -> bool:
        return t % every == 0 and t <= last

    def client_update(model: ModelState, t: int, local: Local) -> ModelState:
        if not readjusts(t):
            return local.tune(model)
        before = max(1, local.epochs - 1)
        moved = readjusted(local.tune(model, epochs=before), t, local)
        return local.tune(moved, epochs=local.epochs - before) if local.epochs > before else moved

    def readjusted(model: ModelState, t: int, local: Local) -> ModelState:
        alpha = ratio / 2 * (1 + math.cos(math.pi * t / last))
        counts = counts_of(model.mask, layout)
        matrices = np.array([len(slot.shape) > 1 for slot in layout.parameters])
        leaving = np.where(matrices, np.floor(alpha * counts), 0).astype(np.int64)
        staying = keep_by_layer(np.abs(model.w), counts - leaving, layout, model.mask)
        gradient = np.abs(local.gradient(model.under(staying), batches=used))
        coming = keep_by_layer(gradient, leaving, layout, ~staying)
        # What comes back starts at 0, also where it left just now.
        return model.under(staying).under(staying | coming)

    def server_update(state: ServerState, updates: Iterable[ClientUpdate], t: int) -> ServerState:
        if t == 0:
            counts = erdos_renyi_kernel(layout, sparsity)
            mask = keep_by_layer(np.abs(state.model.w), counts, layout, state.model.mask)
            return ServerState(t, state.model.under(mask))
        votes = np.zeros(layout.n, np.int32)

        def counted() -> Iterator[ClientUpdate]:
            nonlocal votes
            for update in updates:
                votes += update.model.mask
                yield update

        within = np.ones(layout.n, np.bool_) if readjusts(t) else state.model.mask
        merged = merge_models(counted(), nonzero_of, within)
        # What came back at the end of a round weighs nothing yet: votes decide there, not positions.
        scores = np.maximum(np.abs(merged.w), votes * np.float32(1e-40))
        counts = counts_of(state.model.mask, layout)
        first = keep_by_layer(scores, counts, layout, merged.mask & (votes >= min_votes))
        mask = first | keep_by_layer(scores, counts - counts_of(first, layout), layout, merged.mask & ~first)
        return ServerState(t, merged.under(mask))

    return Method("feddst", client_update, server_update, schedule, regrows=True, starts="server")
