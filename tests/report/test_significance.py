"""Means, deviations and paired tests are those one gets by hand, and where a test says nothing, it says why."""

from __future__ import annotations

import math

import pytest

from fedsparsify.report.significance import ALPHA, Difference, compare_pairs, holm, mean_and_deviation

NAN, INF = math.nan, math.inf

# Student's t has simple distribution functions for few degrees of freedom f. The two-sided p-value of t > 0 is
#   f = 1 (2 seeds):  1 - 2/pi * atan(t)
#   f = 2 (3 seeds):  1 - t / sqrt(t^2 + 2)
#   f = 4 (5 seeds):  1 - s * (1 + (1 - s^2) / 2)  with  s = t / sqrt(t^2 + 4)


@pytest.mark.parametrize(
    ("ours", "theirs", "mean", "t", "p"),
    [
        # Differences 1, 3: mean 2, deviation sqrt 2, t = 2 / (sqrt 2 / sqrt 2) = 2.
        ([2.0, 5.0], [1.0, 2.0], 2.0, 2.0, 1 - 2 / math.pi * math.atan(2)),
        # Differences 2, 2, 5: mean 3, squares 1 + 1 + 4, deviation sqrt 3, t = 3 / (sqrt 3 / sqrt 3) = 3.
        ([3.0, 4.0, 8.0], [1.0, 2.0, 3.0], 3.0, 3.0, 1 - 3 / math.sqrt(11)),
        # The same the other way round: two-sided.
        ([1.0, 2.0, 3.0], [3.0, 4.0, 8.0], -3.0, -3.0, 1 - 3 / math.sqrt(11)),
        # Differences 2, 3, 4 points: mean 3, deviation 1, t = 3 sqrt 3, p = 1 - sqrt(27/29) = 0.035.
        ([0.90, 0.91, 0.92], [0.88, 0.88, 0.88], 0.03, math.sqrt(27), 1 - math.sqrt(27 / 29)),
        # Differences 0, 1, 2, 3, 4: mean 2, deviation sqrt 2.5, t = 2 / sqrt(2.5 / 5) = sqrt 8, s^2 = 2/3.
        ([1.0, 3.0, 5.0, 7.0, 9.0], [1.0, 2.0, 3.0, 4.0, 5.0], 2.0, math.sqrt(8), 1 - math.sqrt(2 / 3) * 7 / 6),
        # Differences -1, 0, 1: mean 0, so that nothing speaks for a difference.
        ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], 0.0, 0.0, 1.0),
    ],
)
def test_the_paired_t_test_by_hand(ours: list[float], theirs: list[float], mean: float, t: float, p: float) -> None:
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    n = len(differences)
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1))
    assert t == pytest.approx(mean / (spread / math.sqrt(n)))  # the comments above can be trusted
    outcome = compare_pairs({"a": dict(enumerate(ours)), "b": dict(enumerate(theirs))}, "b")
    assert list(outcome) == ["a"]
    assert outcome["a"].mean == pytest.approx(mean, abs=1e-15)
    assert outcome["a"].p == outcome["a"].adjusted == pytest.approx(p, rel=1e-9)
    assert (outcome["a"].seeds, outcome["a"].reason) == (n, "")
    assert outcome["a"].significant == (p < 0.05)


def test_pairing_finds_what_the_spread_between_seeds_hides() -> None:
    # Seeds differ by 30 points, the methods by about one on each of them.
    ours = {1: 0.511, 2: 0.660, 3: 0.809, 4: 0.520, 5: 0.680}
    theirs = {1: 0.500, 2: 0.650, 3: 0.800, 4: 0.510, 5: 0.669}
    assert compare_pairs({"a": ours, "b": theirs}, "b")["a"].p < 0.001
    # Dealt to other seeds, the same scores tell nothing apart.
    shuffled = dict(zip(theirs, [0.800, 0.510, 0.500, 0.669, 0.650], strict=True))
    assert compare_pairs({"a": ours, "b": shuffled}, "b")["a"].p > 0.5


@pytest.mark.parametrize(
    ("ours", "theirs", "mean", "seeds", "words"),
    [
        ({1: 0.9}, {1: 0.8}, 0.1, 1, "one seed: no statement"),
        ({1: 0.9, 2: 0.9}, {2: 0.8, 3: 0.7}, 0.1, 1, "one seed: no statement"),
        ({1: 0.9, 2: 0.9}, {3: 0.8, 4: 0.8}, NAN, 0, "no common seed: no statement"),
        ({1: 0.9, 2: 0.8, 3: 0.7}, {1: 0.9, 2: 0.8, 3: 0.7}, 0.0, 3, "not significant (p = 1, 3 seeds)"),
        ({1: 3.0, 2: 4.0}, {1: 1.0, 2: 2.0}, 2.0, 2, "the same difference on every seed: no statement"),
        # 0.3 - 0.2 and 0.2 - 0.1 are not the same float: that is no spread to divide by.
        ({1: 0.3, 2: 0.2}, {1: 0.2, 2: 0.1}, 0.1, 2, "the same difference on every seed: no statement"),
        ({1: NAN, 2: 0.9, 3: 0.9}, {1: 0.8, 2: 0.7, 3: 0.6}, NAN, 3, "a run diverged: no statement"),
        ({1: 0.9, 2: 0.9, 3: 0.9}, {1: 0.8, 2: INF, 3: 0.6}, NAN, 3, "a run diverged: no statement"),
        ({1: INF, 2: 0.9}, {1: INF, 2: 0.7}, NAN, 2, "a run diverged: no statement"),
    ],
)
def test_what_cannot_be_tested_says_so(
    ours: dict[int, float], theirs: dict[int, float], mean: float, seeds: int, words: str
) -> None:
    outcome = compare_pairs({"a": ours, "b": theirs}, "b")["a"]
    assert outcome.words == words
    assert not outcome.significant
    assert outcome.seeds == seeds
    assert outcome.mean == pytest.approx(mean, nan_ok=True)
    # A p-value is there exactly where there is no reason for its absence.
    assert math.isnan(outcome.p) == math.isnan(outcome.adjusted) == bool(outcome.reason)


def test_seeds_of_one_method_only_are_left_out() -> None:
    # Seeds 1, 2, 3 are those of the example above with differences 2, 2, 5; the others would change everything.
    ours = {1: 3.0, 2: 4.0, 3: 8.0, 7: -1000.0}
    theirs = {9: NAN, 3: 3.0, 2: 2.0, 1: 1.0, 8: 1000.0}
    outcome = compare_pairs({"a": ours, "b": theirs}, "b")["a"]
    assert (outcome.seeds, outcome.mean) == (3, 3.0)
    assert outcome.p == pytest.approx(1 - 3 / math.sqrt(11))


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([], []),
        ([0.04], [0.04]),
        # Times 3, 2, 1 from the smallest on, and no value below one before it: 0.03, max(0.03, 0.06), max(0.06, 0.04).
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        # 4 * 0.005, 3 * 0.01, 2 * 0.03, 1 * 0.04 -> 0.06.
        ([0.04, 0.005, 0.03, 0.01], [0.06, 0.02, 0.06, 0.03]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.6, 0.5, 0.0], [1.0, 1.0, 0.0]),
    ],
)
def test_holms_correction_by_hand(p_values: list[float], adjusted: list[float]) -> None:
    assert holm(p_values) == pytest.approx(adjusted)


def test_a_difference_alone_may_be_significant_and_among_others_not() -> None:
    reference = dict.fromkeys((1, 2, 3), 0.88)
    clear = {1: 0.90, 2: 0.91, 3: 0.92}  # p = 0.0351, as above
    unclear = {1: 0.87, 2: 0.88, 3: 0.89}  # p = 1
    untested = {1: 0.5}
    p = 1 - math.sqrt(27 / 29)
    alone = compare_pairs({"clear": clear, "reference": reference}, "reference")["clear"]
    assert alone.significant and alone.words == "significant (p = 0.035, 3 seeds)"
    # What cannot be tested is no test to correct for.
    also = compare_pairs({"untested": untested, "clear": clear, "reference": reference}, "reference")
    assert also["clear"] == alone
    among = compare_pairs({"unclear": unclear, "clear": clear, "reference": reference}, "reference")
    assert among["clear"].p == pytest.approx(p) and among["clear"].adjusted == pytest.approx(2 * p)
    assert among["clear"].words == "not significant (p = 0.07, 3 seeds)"
    assert among["unclear"].words == "not significant (p = 1, 3 seeds)"


@pytest.mark.parametrize(
    ("adjusted", "words"),
    [
        (0.000999, "significant (p < 0.001, 5 seeds)"),
        (0.001, "significant (p = 0.001, 5 seeds)"),
        (0.0499, "significant (p = 0.05, 5 seeds)"),
        (0.05, "not significant (p = 0.05, 5 seeds)"),
        (1.0, "not significant (p = 1, 5 seeds)"),
    ],
)
def test_the_words_say_which_side_of_the_level_a_difference_is_on(adjusted: float, words: str) -> None:
    assert ALPHA == 0.05
    assert Difference(0.1, 5, p=0.0001, adjusted=adjusted).words == words


@pytest.mark.parametrize(
    ("values", "mean", "deviation"),
    [
        ([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0], 5.0, math.sqrt(32 / 7)),  # n - 1, not n: that would be 2
        ([0.5, 0.5], 0.5, 0.0),
        ([3.0], 3.0, NAN),
        ([], NAN, NAN),
        ([1.0, NAN, 2.0], NAN, NAN),
        ([1.0, -INF], NAN, NAN),
    ],
)
def test_mean_and_sample_deviation_by_hand(values: list[float], mean: float, deviation: float) -> None:
    assert mean_and_deviation(iter(values)) == pytest.approx((mean, deviation), nan_ok=True)
