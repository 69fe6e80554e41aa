"""Reals as integers whose sum fits a plaintext: the same integers for everyone, so the same result to the last bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..state import Floats

__all__ = ["FixedPoint", "Limbs"]


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
        if self.scale > 2.0**100:
            raise ArgumentError(f"bound = {self.bound} is too small: changes of parameters are larger")
        if self.scale < 100.0:
            raise ArgumentError(
                f"bound = {self.bound} is too large: changes would be rounded to multiples of {1 / self.scale:.2g}"
            )

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
        return _share(values, weight, self.bound, self.scale)

    def reals(self, total: NDArray[np.int64], weight: float = 1.0) -> Floats:
        """Return the mean float32[k] of a sum of shares, int64[k], whose weights add up to ``weight``."""
        return (total / (weight * self.scale)).astype(np.float32)


@dataclass(frozen=True)
class Limbs:
    """How few reals of unknown size are written exactly: each as several integers that a plaintext has room for.

    A share is rounded to 2**-24 and clipped to 2**24, which holds any running statistic worth keeping.

    Attributes:
        modulus: t of the :class:`.Scheme`.
        participants: most summands.

    >>> limbs = Limbs(modulus=1 << 18, participants=26)
    >>> shares = [limbs.integers(np.float32([1000.5, -3]), 0.25)[0], limbs.integers(np.float32([0.5, 1]), 0.75)[0]]
    >>> limbs.reals(shares[0] + shares[1]).tolist()
    [250.5, 0.0]
    """

    modulus: int
    participants: int

    def __post_init__(self) -> None:
        if self.participants < 1 or self.bits < 2:
            raise ArgumentError(f"{self.participants} participants leave no integer modulo {self.modulus} for values")

    @property
    def bits(self) -> int:
        """Of one integer; a sum of all participants' is within t / 2."""
        return ((self.modulus - 1) // max(self.participants, 1)).bit_length() - 1

    @property
    def each(self) -> int:
        """Integers a real."""
        return -(-(_BITS + 2) // self.bits)

    def integers(self, values: Floats, weight: float) -> tuple[NDArray[np.int64], int]:
        """Return a client's share, int64[k * each], of values float32[k], and how many had to be clipped.

        Raises:
            ArgumentError: a value is not finite, or the weight is out of its range.
        """
        share, clipped = _share(values, weight, _LARGEST, _UNIT)
        half, base = 1 << (self.bits - 1), 1 << self.bits
        limbs = np.zeros((self.each, len(values)), np.int64)
        for i in range(self.each - 1):
            limbs[i] = (share + half) % base - half
            share = (share - limbs[i]) >> self.bits
        limbs[-1] = share
        return limbs.reshape(-1), clipped

    def reals(self, total: NDArray[np.int64], weight: float = 1.0) -> Floats:
        """Return the mean float32[k] of a sum of shares, int64[k * each], whose weights add up to ``weight``."""
        limbs = total.reshape(self.each, -1)
        whole = np.zeros(limbs.shape[1], np.int64)
        for limb in limbs[::-1]:
            whole = (whole << self.bits) + limb
        return (whole / (weight * _UNIT)).astype(np.float32)


_BITS = 48
_LARGEST, _UNIT = float(1 << 24), float(1 << 24)


def _share(values: Floats, weight: float, bound: float, scale: float) -> tuple[NDArray[np.int64], int]:
    if not 0 < weight <= 1:
        raise ArgumentError(f"weight = {weight} must be more than 0 and at most 1")
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        raise ArgumentError("values that are not finite numbers cannot be encrypted")
    clipped = int(np.count_nonzero(np.abs(wide) > bound))
    return np.rint(np.clip(wide, -bound, bound) * (weight * scale)).astype(np.int64), clipped
