"""Score -> mask with an exact number of survivors.

Three independent choices compose: a *criterion* scores every parameter, a *scope* says which parameters compete with
each other, and :func:`exact_mask` keeps the best of each group. None of them knows the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import ArgumentError
from .layout import ParameterLayout
from .state import Floats, Mask

__all__ = [
    "CRITERIA",
    "SCOPES",
    "Criterion",
    "Purge",
    "Scope",
    "exact_mask",
    "global_scope",
    "kept",
    "magnitude",
    "magnitude_mask",
    "make_purge",
    "per_layer_scope",
    "prunable_positions",
]

Criterion = Callable[[Floats], Floats]
"""w: float32[n] -> score: float32[n]; the largest scores survive."""

Scope = Callable[[ParameterLayout, Mask], list[NDArray[np.int64]]]
"""(layout, prunable: bool[n]) -> index arrays, ascending and disjoint; parameters compete within one array."""

Purge = Callable[[Floats, float, Mask], Mask]
"""(w: float32[n], sparsity, mask: bool[n]) -> the next mask, a subset of the given one."""


def kept(n: int, sparsity: float) -> int:
    """Number of parameters that survive: n - floor(sparsity * n).

    Raises:
        ArgumentError: ``sparsity`` is not in [0, 1).

    >>> kept(118_282, 0.95)
    5915
    """
    if not 0 <= sparsity < 1:
        raise ArgumentError(f"sparsity = {sparsity} must be at least 0 and less than 1")
    return n - math.floor(sparsity * n)


def exact_mask(scores: Floats, count: int, mask: Mask) -> Mask:
    """Keep the ``count`` survivors of ``mask`` with the largest scores; ties go to the lower index.

    Args:
        scores: float32[n], without NaN.
        count: number to keep; where fewer survive in ``mask``, all of them are kept.
        mask: bool[n], the only positions that can be kept.

    Returns:
        bool[n], True at ``count`` positions (or fewer, see above), all of them True in ``mask``.

    Raises:
        ArgumentError: shapes differ, or a survivor's score is NaN.

    O(n): a partial selection instead of a sort.
    """
    if scores.shape != mask.shape:
        raise ArgumentError(f"scores have shape {scores.shape}, but the mask has {mask.shape}")
    alive = np.flatnonzero(mask)
    if alive.size <= count:
        return mask.copy()
    values = scores[alive]
    if np.isnan(values).any():
        raise ArgumentError(f"parameter {alive[np.isnan(values)][0]} has the score NaN, which has no rank")
    keep = np.zeros(mask.shape, np.bool_)
    if count > 0:
        threshold = np.partition(values, values.size - count)[values.size - count]
        above = values > threshold
        tied = np.flatnonzero(values == threshold)[: count - np.count_nonzero(above)]
        keep[alive[above]] = True
        keep[alive[tied]] = True
    return keep


def magnitude(w: Floats) -> Floats:
    """Score parameters by |w|, as the paper does."""
    return np.abs(w)


def magnitude_mask(weights: Floats, sparsity: float, mask: Mask | None = None) -> Mask:
    """Keep the n - floor(sparsity * n) parameters of largest magnitude over the whole vector.

    Args:
        weights: float32[n].
        sparsity: fraction to prune, in [0, 1).
        mask: bool[n] of the current survivors, or None if nothing is pruned yet; pruned parameters stay pruned.

    Returns:
        bool[n].

    Raises:
        ArgumentError: ``sparsity`` is out of range, shapes differ, or a weight is NaN.

    Source: arXiv 2204.12430, algorithm 1, Purge.

    >>> magnitude_mask(np.array([0.1, -3.0, 2.0, 0.1], np.float32), 0.25).tolist()
    [True, True, True, False]
    """
    alive = np.ones(weights.shape, np.bool_) if mask is None else mask
    return exact_mask(magnitude(weights), kept(weights.size, sparsity), alive)


def global_scope(layout: ParameterLayout, prunable: Mask) -> list[NDArray[np.int64]]:
    """All prunable parameters compete with each other (the paper's choice)."""
    return [np.flatnonzero(prunable)]


def per_layer_scope(layout: ParameterLayout, prunable: Mask) -> list[NDArray[np.int64]]:
    """Parameters compete within their own tensor, so that every tensor reaches the same sparsity."""
    groups = [slot.offset + np.flatnonzero(prunable[slot.span]) for slot in layout.parameters]
    return [group for group in groups if group.size]


def prunable_positions(layout: ParameterLayout, prunable: str) -> Mask:
    """Return bool[n], which parameters may be pruned.

    Args:
        layout: the network's layout.
        prunable: ``"all"``, or ``"weights"`` to leave one-dimensional tensors (biases, batch-norm) alone.

    Raises:
        ArgumentError: another word.
    """
    if prunable not in ("all", "weights"):
        raise ArgumentError(f'purge.prunable = "{prunable}" must be "all" or "weights"')
    positions = np.ones(layout.n, np.bool_)
    for slot in layout.parameters:
        if prunable == "weights" and len(slot.shape) < 2:
            positions[slot.span] = False
    return positions


def make_purge(
    layout: ParameterLayout,
    criterion: Criterion = magnitude,
    scope: Scope = global_scope,
    prunable: str = "all",
) -> Purge:
    """Compose a criterion, a scope and a prunable set into ``(w, sparsity, mask) -> mask``.

    The sparsity is a fraction of the prunable parameters; within each group of the scope exactly
    ``kept(group size, sparsity)`` survive (fewer only where fewer were left).
    """
    groups: Sequence[NDArray[np.int64]] = scope(layout, prunable_positions(layout, prunable))

    def purge(w: Floats, sparsity: float, mask: Mask) -> Mask:
        scores = criterion(w)
        if len(groups) == 1 and groups[0].size == layout.n:
            return exact_mask(scores, kept(layout.n, sparsity), mask)
        pruned = mask.copy()
        for group in groups:
            pruned[group] = exact_mask(scores[group], kept(group.size, sparsity), mask[group])
        return pruned

    return purge


CRITERIA: dict[str, Criterion] = {"magnitude": magnitude}
SCOPES: dict[str, Scope] = {"global": global_scope, "per-layer": per_layer_scope}
