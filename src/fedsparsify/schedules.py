"""Round -> target sparsity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .errors import ArgumentError

__all__ = ["PolynomialSchedule", "Schedule", "StepSchedule"]

Schedule = Callable[[int], float]
"""Any function from a round (1..T) to the fraction of parameters that are zero after it."""


@dataclass(frozen=True)
class PolynomialSchedule:
    """The paper's schedule: fast at first, when much is redundant, and gentle towards the end.

    With S_0 = ``initial``, S_T = ``final``, t_0 = ``start_round``, T = ``total_rounds``, F = ``frequency`` and
    e = ``exponent``::

        s_t = S_T + (S_0 - S_T) * (1 - (F * floor(t / F) - t_0) / (T - t_0)) ** e      for t >= t_0
        s_t = 0                                                                        for t < t_0

    Where F * floor(t / F) < t_0, t_0 takes its place. The last round reaches S_T also where F does not divide T.

    Attributes:
        initial: sparsity at ``start_round``, in [0, 1).
        final: sparsity after ``total_rounds``, in [initial, 1).
        start_round: first round that prunes, at least 1.
        total_rounds: last round, at least ``start_round``.
        frequency: rounds between two prunings, at least 1.
        exponent: 1 prunes evenly, larger exponents prune earlier; more than 0.

    Raises:
        ArgumentError: a value is out of its range.

    Source: arXiv 2204.12430, section 3 (after Zhu and Gupta, arXiv 1710.01878).

    >>> schedule = PolynomialSchedule(initial=0.0, final=0.9, start_round=1, total_rounds=4)
    >>> [round(schedule(t), 4) for t in range(6)]
    [0.0, 0.0, 0.6333, 0.8667, 0.9, 0.9]
    """

    initial: float
    final: float
    start_round: int
    total_rounds: int
    frequency: int = 1
    exponent: float = 3

    def __post_init__(self) -> None:
        if not 0 <= self.initial < 1:
            raise ArgumentError(f"schedule.initial = {self.initial} must be at least 0 and less than 1")
        if not self.initial <= self.final < 1:
            raise ArgumentError(
                f"schedule.final = {self.final} must be at least schedule.initial = {self.initial} and less than 1:"
                " a network without parameters cannot be trained"
            )
        if self.start_round < 1:
            raise ArgumentError(f"schedule.start_round = {self.start_round} must be at least 1, the first round")
        if self.total_rounds < self.start_round:
            raise ArgumentError(
                f"schedule.start_round = {self.start_round} comes after the last round, {self.total_rounds}"
            )
        if self.frequency < 1:
            raise ArgumentError(f"schedule.frequency = {self.frequency} must be at least 1 round")
        if not self.exponent > 0:
            raise ArgumentError(f"schedule.exponent = {self.exponent} must be more than 0")

    def __call__(self, t: int) -> float:
        """Return s_t, the sparsity that the network has after round ``t``."""
        if t < self.start_round:
            return 0.0
        if t >= self.total_rounds:
            return self.final
        pruning_round = max(self.frequency * (t // self.frequency), self.start_round)
        left = 1 - (pruning_round - self.start_round) / (self.total_rounds - self.start_round)
        # 0.9 + (0.1 - 0.9) is less than 0.1 in float64, and S_0 is a promise.
        return max(self.initial, self.final + (self.initial - self.final) * float(left**self.exponent))


@dataclass(frozen=True)
class StepSchedule:
    """Dense up to a round that prunes once.

    Attributes:
        sparsity: fraction that is zero from ``round`` on, in [0, 1).
        round: the round that prunes; 0 is before training.

    Raises:
        ArgumentError: a value is out of its range.

    >>> [StepSchedule(0.9, 2)(t) for t in range(4)]
    [0.0, 0.0, 0.9, 0.9]
    """

    sparsity: float
    round: int

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ArgumentError(f"schedule.final = {self.sparsity} must be at least 0 and less than 1")
        if self.round < 0:
            raise ArgumentError(f"the round that prunes = {self.round} must be at least 0")

    def __call__(self, t: int) -> float:
        """Return s_t, the sparsity that the network has after round ``t``."""
        return self.sparsity if t >= self.round else 0.0
