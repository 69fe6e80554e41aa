"""How many parameters each layer keeps, where a method decides that apart from which ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..layout import ParameterLayout
from ..purge import exact_mask, kept
from ..state import Floats, Mask

__all__ = ["counts_of", "erdos_renyi_kernel", "keep_by_layer", "share_out", "uniform"]

Counts = NDArray[np.int64]


def share_out(total: int, shares: Sequence[float], sizes: Sequence[int]) -> Counts:
    """Share a budget out in proportion to ``shares``, nobody getting more than its size.

    What full ones leave goes to the others in proportion; fractions go to the largest remainders, ties to the first.

    Args:
        total: the budget, at most the sum of ``sizes``.
        shares: at least 0, one for each layer.
        sizes: how much each layer holds.

    Returns:
        int64[layers] that add up to ``total``.

    Raises:
        ArgumentError: the budget is more than all sizes together, or a share is not finite.

    >>> share_out(10, [1, 1, 2], [2, 20, 20]).tolist()
    [2, 3, 5]
    """
    room, weight = np.asarray(sizes, np.int64), np.asarray(shares, np.float64)
    if not 0 <= total <= room.sum():
        raise ArgumentError(f"{total} parameters cannot be shared out over layers that hold {room.sum()}")
    full = np.zeros(len(room), np.bool_)
    if not np.isfinite(weight).all():
        raise ArgumentError(f"layer {np.flatnonzero(~np.isfinite(weight))[0]} has a share that is not finite")
    while True:
        open_ = ~full
        left = total - room[full].sum()
        scale = weight * open_
        # Layers without any share still take what nobody else has room for.
        scale = scale if scale.sum() > 0 else (room * open_).astype(np.float64)
        ideal: NDArray[np.float64] = np.where(full, room, left * scale / max(scale.sum(), 1e-300)).astype(np.float64)
        over = open_ & (ideal > room)
        if not over.any():
            break
        full |= over
    counts = np.floor(ideal).astype(np.int64)
    for layer in np.argsort(counts - ideal, kind="stable"):
        if counts.sum() == total:
            break
        counts[layer] += counts[layer] < room[layer]
    return counts


def erdos_renyi_kernel(layout: ParameterLayout, sparsity: float) -> Counts:
    """Share n - floor(s n) parameters out as Erdos-Renyi-kernel does: in proportion to the sum of a shape.

    One-dimensional tensors are kept whole, as far as the budget goes. Source: Evci et al., arXiv 1911.11134.

    Returns:
        int64[layers], how many each tensor of the layout keeps.
    """
    return _vectors_whole(layout, sparsity, [sum(slot.shape) for slot in layout.parameters])  # density * size


def uniform(layout: ParameterLayout, sparsity: float) -> Counts:
    """Share n - floor(s n) parameters out in proportion to size; otherwise as :func:`erdos_renyi_kernel` does."""
    return _vectors_whole(layout, sparsity, [slot.size for slot in layout.parameters])


def _vectors_whole(layout: ParameterLayout, sparsity: float, shares: Sequence[float]) -> Counts:
    sizes = [slot.size for slot in layout.parameters]
    budget = kept(layout.n, sparsity)
    vectors = [slot.size if len(slot.shape) < 2 else 0 for slot in layout.parameters]
    if sum(vectors) >= budget:
        return share_out(budget, vectors, sizes)
    wanted = [0 if vector else share for vector, share in zip(vectors, shares, strict=True)]
    room = [size - whole for size, whole in zip(sizes, vectors, strict=True)]
    return share_out(budget - sum(vectors), wanted, room) + np.asarray(vectors, np.int64)


def keep_by_layer(scores: Floats, counts: Counts, layout: ParameterLayout, mask: Mask) -> Mask:
    """Keep within ``mask`` each layer's ``counts`` best scores; see :func:`~fedsparsify.purge.exact_mask`."""
    out = np.zeros_like(mask)
    for slot, count in zip(layout.parameters, counts, strict=True):
        out[slot.span] = exact_mask(scores[slot.span], int(count), mask[slot.span])
    return out


def counts_of(mask: Mask, layout: ParameterLayout) -> Counts:
    """Return how many survivors each layer has, int64[layers]."""
    return np.array([np.count_nonzero(mask[slot.span]) for slot in layout.parameters], np.int64)
