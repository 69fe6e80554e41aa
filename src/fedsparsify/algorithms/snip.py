"""SNIP: keep the connections whose removal would change the loss most, judged before training.

Lee, Ajanthan and Torr, *SNIP: Single-shot Network Pruning based on Connection Sensitivity*, arXiv 1810.02340.

Federated as in arXiv 2204.12430: one client scores the initial network on a batch of its own. Deviations: biases and
normalisation parameters are kept first (see :mod:`.saliency`), and the initial weights are the run's, the same for all
methods, instead of SNIP's variance scaling.
"""

from __future__ import annotations

import numpy as np

from ..layout import ParameterLayout
from ..purge import Purge
from ..state import Floats, ModelState
from .method import Local, Method
from .saliency import check_batches, mask_at_start

__all__ = ["snip"]


def snip(sparsity: float, select: Purge, layout: ParameterLayout, clients: str = "one", batches: int = 1) -> Method:
    """Return SNIP: score = abs(g * w) / sum abs(g * w), g being the gradient of the loss at the initial w.

    Args:
        sparsity: S_T, from round 0 on.
        select: (scores, s, m) -> m'.
        layout: the network's layout.
        clients: ``"one"``, or the average over ``"all"`` that take part in a round.
        batches: how many batches of a client's data the gradient is taken over; 0 for all.

    Raises:
        ArgumentError: an option is out of its range.
    """
    used = check_batches(batches)

    def score(model: ModelState, local: Local) -> Floats:
        sensitivity: Floats = np.abs(local.gradient(model, batches=used) * model.w)
        sensitivity /= max(sensitivity.sum(), np.finfo(np.float32).tiny)
        return sensitivity

    return mask_at_start("snip", score, sparsity, select, layout, clients)
