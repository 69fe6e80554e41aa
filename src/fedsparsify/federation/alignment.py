"""How far clients agree: the drift of their updates and the overlap of their masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ..state import ModelState

__all__ = ["Alignment", "overlap"]


class Alignment:
    """Running figures over one round's updates.

    Args:
        start: the broadcast model that all updates started from.
    """

    def __init__(self, start: ModelState) -> None:
        self._start = start
        self._directions: NDArray[np.float64] = np.zeros(start.nonzero, np.float64)
        self._moved = 0
        self._masks: list[NDArray[np.uint8]] = []

    def add(self, model: ModelState) -> None:
        """Count one client's model in; an eighth of a byte is kept for each survivor of the broadcast."""
        kept = None if model.mask is self._start.mask else model.mask[self._start.survivors]
        values = model.at(self._start.mask)
        update = values.astype(np.float64) - self._start.values
        length = math.sqrt(_square(update))
        if length > 0:
            self._directions += update / length
            self._moved += 1
        self._masks.append(np.packbits(np.ones(self._start.nonzero, np.bool_) if kept is None else kept))

    @property
    def client_drift(self) -> float | None:
        """Mean pairwise cosine distance of the client updates, in [0, 2]; None for fewer than two that moved.

        The sum over all pairs of unit vectors u_j . u_k follows from the length of their sum, so no pair is visited.
        """
        k = self._moved
        if k < 2:
            return None
        return 1.0 - (_square(self._directions) - k) / (k * (k - 1))

    @property
    def mask_overlap(self) -> float | None:
        """Mean pairwise Jaccard index of the client masks, in [0, 1]; None for fewer than two clients."""
        return overlap(self._masks)


def overlap(masks: Sequence[NDArray[np.uint8]]) -> float | None:
    """Return the mean pairwise Jaccard index of packed masks, in [0, 1]; None for fewer than two."""
    if len(masks) < 2:
        return None
    if all(np.array_equal(mask, masks[0]) for mask in masks):
        return 1.0
    return float(np.mean([_jaccard(a, b) for a, b in combinations(masks, 2)]))


def _square(vector: NDArray[np.float64]) -> float:
    """Return the sum of squares; not by BLAS, whose idle threads would take the workers' cores."""
    return float(np.square(vector).sum())


def _jaccard(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    union = int(np.bitwise_count(a | b).sum())
    return int(np.bitwise_count(a & b).sum()) / union if union else 1.0
