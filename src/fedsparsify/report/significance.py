"""Means and deviations over seeds, and paired tests of a difference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

__all__ = ["ALPHA", "Difference", "compare_pairs", "holm", "mean_and_deviation"]

ALPHA = 0.05
"""The level of the tests."""


@dataclass(frozen=True)
class Difference:
    """A paired comparison of a cell with another one over the seeds that both have.

    Attributes:
        mean: mean difference, this one minus the other; NaN where a run has diverged or no seed is common.
        seeds: how many seeds are common.
        p: p-value of the two-sided paired t-test; NaN where it says nothing, see ``reason``.
        adjusted: ``p`` after Holm's correction for the other tests of the column.
        reason: why there is no statement; empty where there is one.
    """

    mean: float
    seeds: int
    p: float = math.nan
    adjusted: float = math.nan
    reason: str = ""

    @property
    def significant(self) -> bool:
        """Whether the test tells the two apart."""
        return self.adjusted < ALPHA

    @property
    def words(self) -> str:
        """The outcome, as in ``not significant (p = 0.31, 3 seeds)``."""
        if self.reason:
            return f"{self.reason}: no statement"
        p = "p < 0.001" if self.adjusted < 0.001 else f"p = {self.adjusted:.2g}"
        return f"{'' if self.significant else 'not '}significant ({p}, {self.seeds} seeds)"


def compare_pairs(values: Mapping[str, Mapping[int, float]], other: str) -> dict[str, Difference]:
    """Test each method against another one, seed by seed, and correct for the number of tests by Holm's method.

    The test is Student's paired t-test, two-sided. It assumes that the differences of the seeds are independent and
    normally distributed.

    Args:
        values: method -> seed -> score.
        other: the method that the others are compared with.

    Returns:
        method -> outcome; ``other`` itself is left out.
    """
    outcomes = {method: _paired(own, values[other]) for method, own in values.items() if method != other}
    tested = [method for method, outcome in outcomes.items() if not math.isnan(outcome.p)]
    for method, adjusted in zip(tested, holm([outcomes[method].p for method in tested]), strict=True):
        outcomes[method] = replace(outcomes[method], adjusted=adjusted)
    return outcomes


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for all of them being looked at (Holm 1979, step-down Bonferroni).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def mean_and_deviation(values: Iterable[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation (n - 1); NaN for the latter where there is one value only.

    >>> mean_and_deviation([1.0, 2.0, 3.0])
    (2.0, 1.0)
    """
    values = list(values)
    if not values or not all(map(math.isfinite, values)):
        return math.nan, math.nan
    return fmean(values), stdev(values) if len(values) > 1 else math.nan


def _paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        return Difference(math.nan, 0, reason="no common seed")
    differences = [ours[seed] - theirs[seed] for seed in common]
    if not all(map(math.isfinite, differences)):
        return Difference(math.nan, len(common), reason="a run diverged")
    mean = fmean(differences)
    if len(common) == 1:
        return Difference(mean, 1, reason="one seed")
    if not any(differences):
        return Difference(0.0, len(common), p=1.0)
    # What is left of equal differences after rounding is no spread to measure by.
    if stdev(differences) <= 1e-9 * max(map(abs, differences)):
        return Difference(mean, len(common), reason="the same difference on every seed")
    from scipy.stats import ttest_rel  # half a second to import

    test = ttest_rel([ours[seed] for seed in common], [theirs[seed] for seed in common])
    return Difference(mean, len(common), p=float(test.pvalue))
