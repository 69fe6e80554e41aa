"""The paper's schedule: s_t = S_T + (S_0 - S_T)(1 - (F floor(t/F) - t_0) / (T - t_0))^e, by hand and as properties."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparsify.errors import ArgumentError
from fedsparsify.schedules import PolynomialSchedule

# (schedule, {round: sparsity worked out by hand})
BY_HAND: dict[str, tuple[PolynomialSchedule, dict[int, Fraction]]] = {
    "cubic, every round": (
        PolynomialSchedule(initial=0.0, final=0.9, start_round=1, total_rounds=5),
        {
            0: Fraction(0),
            1: Fraction(0),
            2: Fraction(9, 10) * (1 - Fraction(27, 64)),
            3: Fraction(9, 10) * Fraction(7, 8),
            4: Fraction(9, 10) * Fraction(63, 64),
            5: Fraction(9, 10),
        },
    ),
    "exponent 1 prunes evenly": (
        PolynomialSchedule(initial=0.0, final=0.8, start_round=1, total_rounds=5, exponent=1),
        {1: Fraction(0), 2: Fraction(2, 10), 3: Fraction(4, 10), 4: Fraction(6, 10), 5: Fraction(8, 10)},
    ),
    "exponent 1/2 prunes late": (
        PolynomialSchedule(initial=0.0, final=0.5, start_round=1, total_rounds=5, exponent=0.5),
        {1: Fraction(0), 4: Fraction(1, 4), 5: Fraction(1, 2)},  # (1 - 3/4)^(1/2) = 1/2
    ),
    "starts at S_0, from t_0 on": (
        PolynomialSchedule(initial=0.5, final=0.9, start_round=3, total_rounds=7, exponent=2),
        {
            1: Fraction(0),
            2: Fraction(0),
            3: Fraction(1, 2),
            4: Fraction(9, 10) - Fraction(4, 10) * Fraction(9, 16),
            5: Fraction(9, 10) - Fraction(4, 10) * Fraction(4, 16),
            6: Fraction(9, 10) - Fraction(4, 10) * Fraction(1, 16),
            7: Fraction(9, 10),
        },
    ),
    # F = 3 does not divide T = 7: rounds 1 and 2 lie before the first multiple, where t_0 takes its place, and the
    # last round reaches S_T although 3 * floor(7 / 3) = 6.
    "F does not divide T": (
        PolynomialSchedule(initial=0.0, final=0.6, start_round=1, total_rounds=7, frequency=3, exponent=1),
        {
            1: Fraction(0),
            2: Fraction(0),
            3: Fraction(6, 10) * Fraction(2, 6),
            4: Fraction(6, 10) * Fraction(2, 6),
            5: Fraction(6, 10) * Fraction(2, 6),
            6: Fraction(6, 10) * Fraction(5, 6),
            7: Fraction(6, 10),
        },
    ),
    # 4 * floor(5 / 4) = 4 and 4 * floor(7 / 4) = 4 are before t_0 = 5; unclamped they would give less than S_0.
    "F floor(t/F) before t_0": (
        PolynomialSchedule(initial=0.2, final=0.6, start_round=5, total_rounds=13, frequency=4, exponent=1),
        {
            4: Fraction(0),
            5: Fraction(2, 10),
            7: Fraction(2, 10),
            8: Fraction(2, 10) + Fraction(4, 10) * Fraction(3, 8),
            11: Fraction(2, 10) + Fraction(4, 10) * Fraction(3, 8),
            12: Fraction(2, 10) + Fraction(4, 10) * Fraction(7, 8),
            13: Fraction(6, 10),
        },
    ),
    "F larger than T prunes once, at the end": (
        PolynomialSchedule(initial=0.0, final=0.9, start_round=1, total_rounds=4, frequency=10),
        {1: Fraction(0), 2: Fraction(0), 3: Fraction(0), 4: Fraction(9, 10)},
    ),
    "T = t_0 prunes in one step": (
        PolynomialSchedule(initial=0.3, final=0.7, start_round=4, total_rounds=4),
        {3: Fraction(0), 4: Fraction(7, 10), 5: Fraction(7, 10)},
    ),
    "one round": (
        PolynomialSchedule(initial=0.0, final=0.9, start_round=1, total_rounds=1),
        {0: Fraction(0), 1: Fraction(9, 10)},
    ),
    "S_0 = S_T is constant": (
        PolynomialSchedule(initial=0.4, final=0.4, start_round=2, total_rounds=5),
        {1: Fraction(0), 2: Fraction(4, 10), 3: Fraction(4, 10), 5: Fraction(4, 10)},
    ),
}


@pytest.mark.parametrize(("schedule", "rounds"), BY_HAND.values(), ids=BY_HAND)
def test_sparsity_is_what_the_formula_gives_by_hand(schedule: PolynomialSchedule, rounds: dict[int, Fraction]) -> None:
    assert {t: schedule(t) for t in rounds} == pytest.approx({t: float(s) for t, s in rounds.items()}, abs=1e-12)


def test_the_usual_settings_of_the_paper_are_the_defaults() -> None:
    assert PolynomialSchedule(0.0, 0.95, 1, 200) == PolynomialSchedule(0.0, 0.95, 1, 200, frequency=1, exponent=3)
    # Half way: 0.95 * (1 - (1 - 99/199)^3)
    assert PolynomialSchedule(0.0, 0.95, 1, 200)(100) == pytest.approx(0.95 * (1 - (100 / 199) ** 3), abs=1e-12)


def test_the_first_pruning_round_has_exactly_the_initial_sparsity() -> None:
    # 0.9 + (0.1 - 0.9) is 0.09999999999999998 in float64, with which one parameter of ten would be kept too many.
    assert PolynomialSchedule(0.1, 0.9, 1, 4)(1) == 0.1


schedules = st.builds(
    lambda ends, start, more, frequency, exponent: PolynomialSchedule(
        min(ends), max(ends), start, start + more, frequency, exponent
    ),
    ends=st.tuples(*2 * [st.floats(0, 1, exclude_max=True)]),
    start=st.integers(1, 50),
    more=st.integers(0, 60),
    frequency=st.integers(1, 70),
    exponent=st.floats(0.1, 10),
)


@settings(deadline=None)
@given(schedules)
def test_sparsity_never_falls_and_stays_between_its_ends(schedule: PolynomialSchedule) -> None:
    values = [schedule(t) for t in range(schedule.total_rounds + 3)]
    assert values == sorted(values)
    assert all(s == 0.0 for s in values[: schedule.start_round])
    assert all(schedule.initial <= s <= schedule.final for s in values[schedule.start_round :])


@settings(deadline=None)
@given(schedules)
def test_the_last_round_reaches_the_final_sparsity_exactly(schedule: PolynomialSchedule) -> None:
    assert schedule(schedule.total_rounds) == schedule.final


@settings(deadline=None)
@given(schedules)
def test_sparsity_changes_only_in_pruning_rounds(schedule: PolynomialSchedule) -> None:
    for t in range(schedule.start_round + 1, schedule.total_rounds):
        if t % schedule.frequency:
            assert schedule(t) == schedule(t - 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"initial": -0.1}, r"schedule\.initial = -0\.1 must be at least 0 and less than 1"),
        ({"initial": 1.0, "final": 1.0}, r"schedule\.initial = 1\.0 must be"),
        ({"initial": float("nan")}, r"schedule\.initial = nan must be"),
        ({"final": 1.0}, r"schedule\.final = 1\.0 must be .* less than 1: a network without parameters"),
        ({"final": 1.5}, r"schedule\.final = 1\.5 must be"),
        ({"final": float("nan")}, r"schedule\.final = nan must be"),
        ({"initial": 0.5, "final": 0.4}, r"schedule\.final = 0\.4 must be at least schedule\.initial = 0\.5"),
        ({"start_round": 0}, r"schedule\.start_round = 0 must be at least 1"),
        ({"start_round": 11}, r"schedule\.start_round = 11 comes after the last round, 10"),
        ({"total_rounds": 0}, r"schedule\.start_round = 1 comes after the last round, 0"),
        ({"frequency": 0}, r"schedule\.frequency = 0 must be at least 1"),
        ({"exponent": 0}, r"schedule\.exponent = 0 must be more than 0"),
        ({"exponent": -1.0}, r"schedule\.exponent = -1\.0 must be more than 0"),
        ({"exponent": float("nan")}, r"schedule\.exponent = nan must be more than 0"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_key(wrong: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {"initial": 0.0, "final": 0.9, "start_round": 1, "total_rounds": 10}
    with pytest.raises(ArgumentError, match=message):
        PolynomialSchedule(**{**right, **wrong})
