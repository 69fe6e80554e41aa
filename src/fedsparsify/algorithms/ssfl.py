"""SSFL: one mask for all clients, from the saliency of the initial parameters on everybody's data.

Ohib et al., *SSFL: Discovering Sparse Unified Subnetworks at Initialization for Efficient Federated Learning*,
arXiv 2405.09037.

Deviations: scores come from those who take part in round 0, which is everybody with full participation; biases and
normalisation parameters are kept first (see :mod:`.saliency`).
"""

from __future__ import annotations

import numpy as np

from ..layout import ParameterLayout
from ..purge import Purge
from ..state import Floats, ModelState
from .method import Local, Method
from .saliency import check_batches, mask_at_start

__all__ = ["ssfl"]


def ssfl(sparsity: float, select: Purge, layout: ParameterLayout, batches: int = 1) -> Method:
    """Return SSFL: score = sum p_k abs(g_k * w), g_k being client k's gradient at the initial w.

    Args:
        sparsity: S_T, from round 0 on.
        select: (scores, s, m) -> m'.
        layout: the network's layout.
        batches: how many batches of each client's data the gradient is taken over; 0 for all.

    Raises:
        ArgumentError: an option is out of its range.
    """
    used = check_batches(batches)

    def score(model: ModelState, local: Local) -> Floats:
        saliency: Floats = np.abs(local.gradient(model, batches=used) * model.w)
        return saliency

    return mask_at_start("ssfl", score, sparsity, select, layout, "all")
