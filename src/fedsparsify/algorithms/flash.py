"""FLASH: a few clients find out how sensitive each layer is; the server draws one mask of those layer densities.

Babakniya, Kundu, Prakash, Niu and Avestimehr, *Revisiting Sparsity Hunting in Federated Learning: Why does Sparsity
Consensus Matter?*, arXiv 2208.13092; its variant SPDST, in which that mask stays.

Deviations: those who take part in round 0 search, not a fraction of 5%, each for as many epochs as in any round instead
of ten; the share of survivors that moves in the search falls by epochs, not by steps; biases and normalisation
parameters are kept whole, as far as the budget goes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..errors import ArgumentError
from ..layout import ParameterLayout
from ..purge import kept
from ..randomness import derive
from ..schedules import StepSchedule
from ..state import ClientUpdate, Floats, Mask, ModelState, ServerState
from .densities import Counts, counts_of, erdos_renyi_kernel, keep_by_layer, share_out
from .fedavg import average
from .method import Local, Method

__all__ = ["flash"]


def flash(sparsity: float, layout: ParameterLayout, seed: int, ratio: float = 0.5) -> Method:
    """Return FLASH.

    Round 0: each client starts from a random mask; after each of its epochs it drops the share ``ratio`` (falling
    linearly to 0) of least magnitude in every layer and grows as many at random, shared out over layers in proportion
    to the mean magnitude of what is left in them. The server averages the layer densities that they end with, and
    draws a random mask with these densities for the initial weights. From round 1 on: FedAvg under that mask.

    Args:
        sparsity: S_T, from round 0 on.
        layout: the network's layout.
        seed: the run's seed.
        ratio: share of the survivors that the first epoch of the search moves, in (0, 1).

    Raises:
        ArgumentError: an option is out of its range.
    """
    if not 0 < ratio < 1:
        raise ArgumentError(f"method.ratio = {ratio} must be more than 0 and less than 1")
    matrices = np.array([len(slot.shape) > 1 for slot in layout.parameters])
    sizes = np.array([slot.size for slot in layout.parameters])

    def drawn(counts: Counts, purpose: str) -> Mask:
        ranks = derive(seed, purpose).random(layout.n, dtype="float32")
        return keep_by_layer(ranks, counts, layout, np.ones(layout.n, np.bool_))

    def client_update(model: ModelState, t: int, local: Local) -> ModelState:
        if t > 0:
            return local.tune(model)
        rng = local.random()
        model = model.under(drawn(erdos_renyi_kernel(layout, sparsity), "search mask"))
        for epoch in range(local.epochs):
            model = local.tune(model, epochs=1)
            model = moved(model, ratio * (1 - epoch / local.epochs), rng.random(layout.n, dtype="float32"))
        return model

    def moved(model: ModelState, share: float, ranks: Floats) -> ModelState:
        counts = counts_of(model.mask, layout)
        staying_counts = counts - np.where(matrices, np.floor(share * counts), 0).astype(np.int64)
        staying = keep_by_layer(np.abs(model.w), staying_counts, layout, model.mask)
        left = model.under(staying)
        sums = np.array([np.abs(left.w[slot.span]).sum() for slot in layout.parameters], np.float64)
        means = sums / np.maximum(staying_counts, 1) * matrices
        room = np.where(matrices, sizes - staying_counts, 0)
        growing = share_out(int((counts - staying_counts).sum()), means.tolist(), room.tolist())
        return left.under(staying | keep_by_layer(ranks, growing, layout, ~staying))

    def server_update(state: ServerState, updates: Iterable[ClientUpdate], t: int) -> ServerState:
        if t > 0:
            return average(state, updates, t)
        found = sum(counts_of(update.model.mask, layout) for update in updates)
        counts = share_out(kept(layout.n, sparsity), np.asarray(found).tolist(), sizes.tolist())
        return ServerState(t, state.model.under(drawn(counts, "mask") & state.model.mask))

    return Method("flash", client_update, server_update, StepSchedule(sparsity, 0), starts="participants")
