"""Reals as integers whose sum fits a plaintext: the same integers for everyone, so the same result to the last bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..state import Floats

__all__ = ["FixedPoint"]


@dataclass(frozen=True)
class FixedPoint:
    """How reals within a bound are rounded.

    A client's share must be within bound * p_k, its weight in the mean: then the sum of all shares is within the bound,
    and its integers within t / 2, whoever takes part.

    Attributes:
        bound: largest absolute value of a mean.
        modulus: t of the :class:`.Scheme`.
        participants: most summands; half a unit of each is kept free for rounding.
    """

    bound: float
    modulus: int
    participants: int

    def __post_init__(self) -> None:
        if not 0 < self.bound < float("inf"):
            raise ArgumentError(f"bound = {self.bound} must be a finite number above 0")
        if self.participants < 1 or self.scale <= 0:
            raise ArgumentError(f"{self.participants} participants leave no integer modulo {self.modulus} for values")

    @property
    def scale(self) -> float:
        """Integers a unit."""
        return ((self.modulus - 1) // 2 - (self.participants + 1) // 2) / self.bound

    def integers(self, values: Floats, weight: float) -> tuple[NDArray[np.int64], int]:
        """Return a client's share, int64[k], of values float32[k], and how many had to be clipped to the bound.

        Args:
            values: what is averaged.
            weight: p_k, in (0, 1].

        Raises:
            ArgumentError: a value is not finite, or the weight is out of its range.
        """
        if not 0 < weight <= 1:
            raise ArgumentError(f"weight = {weight} must be more than 0 and at most 1")
        wide = values.astype(np.float64)
        if not np.isfinite(wide).all():
            raise ArgumentError("values that are not finite numbers cannot be encrypted")
        clipped = int(np.count_nonzero(np.abs(wide) > self.bound))
        share = np.clip(wide, -self.bound, self.bound) * (weight * self.scale)
        return np.rint(share).astype(np.int64), clipped

    def reals(self, total: NDArray[np.int64], weight: float = 1.0) -> Floats:
        """Return the mean float32[k] of a sum of shares, int64[k], whose weights add up to ``weight``."""
        return (total / (weight * self.scale)).astype(np.float32)
