"""Merge rules against numbers worked out by hand, and what they promise about order, precision and memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedsparsify.errors import ArgumentError
from fedsparsify.merge import (
    MERGE_RULES,
    Contribution,
    MergeRule,
    average_of,
    majority_nonzero,
    majority_nonzero_of,
    majority_of,
    majority_vote,
    merge_models,
    nonzero_average,
    nonzero_of,
    weighted_average,
)
from fedsparsify.state import ClientUpdate, Floats, Mask, ModelState

rules = pytest.mark.parametrize("rule", MERGE_RULES.values(), ids=MERGE_RULES)


def masks(*rows: str) -> list[Mask]:
    """``"10"`` is [True, False]."""
    return [np.array([digit == "1" for digit in row]) for row in rows]


def floats(*rows: list[float]) -> list[Floats]:
    return [np.array(row, np.float32) for row in rows]


def update(client: int, w: Floats, mask: Mask, num_examples: int, buffers: Floats | None = None) -> ClientUpdate:
    return ClientUpdate(
        client, 1, ModelState(w, mask, np.zeros(0, np.float32) if buffers is None else buffers), num_examples
    )


# Three clients with 1, 2 and 5 examples; p = 1/8, 2/8, 5/8. By position, those who kept it:
#   0: all   1: the first two   2: the third only   3: nobody   4: the first only, with a kept value of 0
WEIGHTS = floats([8, 16, 0, 0, 0], [4, 8, 0, 0, 0], [16, 0, 24, 0, 0])
MASKS = masks("11001", "11000", "10100")
EXAMPLES = [1, 2, 5]


def test_the_weighted_average_weighs_by_examples() -> None:
    # (8 + 2*4 + 5*16) / 8 = 12; (16 + 2*8) / 8 = 4; 5*24 / 8 = 15
    assert weighted_average(WEIGHTS, EXAMPLES).tolist() == [12, 4, 15, 0, 0]


def test_the_nonzero_average_counts_only_those_who_kept_a_parameter() -> None:
    # 12; (16 + 2*8) / 3 = 32/3; 5*24 / 5 = 24
    assert nonzero_average(WEIGHTS, MASKS, EXAMPLES) == pytest.approx([12, 32 / 3, 24, 0, 0])


def test_the_majority_vote_is_by_heads_and_its_average_counts_zeros() -> None:
    w, mask = majority_vote(WEIGHTS, MASKS, EXAMPLES)
    # Kept by 3, 2, 1, 0, 1 of 3: one of three is less than half, although the third holds 5 of 8 examples.
    assert mask.tolist() == [True, True, False, False, False]
    assert w.tolist() == [12, 4, 0, 0, 0]


def test_the_vote_with_nonzero_average_votes_alike_and_averages_over_keepers() -> None:
    w, mask = majority_nonzero(WEIGHTS, MASKS, EXAMPLES)
    assert mask.tolist() == [True, True, False, False, False]
    assert w == pytest.approx([12, 32 / 3, 0, 0, 0])


@pytest.mark.parametrize(
    ("clients", "kept_by", "passes"),
    [(1, 0, False), (1, 1, True), (2, 1, True), (3, 1, False), (3, 2, True), (4, 1, False), (4, 2, True), (5, 2, False),
     (5, 3, True), (10, 4, False), (10, 5, True)],
)  # fmt: skip
def test_a_parameter_stays_if_at_least_half_kept_it(clients: int, kept_by: int, passes: bool) -> None:
    kept = masks(*["1"] * kept_by, *["0"] * (clients - kept_by))
    w = [np.where(mask, np.float32(3), np.float32(0)) for mask in kept]
    for vote in (majority_vote, majority_nonzero):
        merged, mask = vote(w, kept, [1] * clients)
        assert mask.tolist() == [passes]
        assert bool(merged[0]) == passes


def test_averages_without_a_vote_keep_what_anyone_kept() -> None:
    for rule in (average_of, nonzero_of):
        assert rule(zip(WEIGHTS, MASKS, EXAMPLES, strict=True))[1].tolist() == [True, True, True, False, True]


def test_one_client_is_merged_to_itself() -> None:
    w, mask = floats([1.5, 0, -3])[0], masks("101")[0]
    for rule in MERGE_RULES.values():
        merged, kept = rule([(w, mask, 7)])
        assert merged.tolist() == w.tolist()
        assert kept.tolist() == mask.tolist()


def test_sums_are_taken_in_float64() -> None:
    # In float32 2^24 + 1 is 2^24: adding ones to it one after another would change nothing.
    big = floats([2.0**24], *[[1.0]] * 8)
    assert weighted_average(big, [1] * 9)[0] == np.float32((2**24 + 8) / 9)
    assert np.float32((2**24 + 8) / 9) != np.float32(2**24 / 9)
    # Nor may the products n_k w_k be rounded: 3 * (1 + 2^-23) needs 25 bits.
    near_one = np.float32(1 + 2**-23)
    for rule in MERGE_RULES.values():
        pair = [(np.array([near_one]), masks("1")[0], 3), (np.array([-near_one]), masks("1")[0], 2)]
        assert rule(pair)[0][0] == np.float32(float(near_one) / 5)


def test_large_opposite_values_do_not_swallow_a_small_one() -> None:
    w = floats([2.0**50], [1.0], [-(2.0**50)])
    assert weighted_average(w, [1, 1, 1])[0] == pytest.approx(1 / 3)


def test_no_average_of_finite_values_overflows() -> None:
    largest = float(np.finfo(np.float32).max)
    for rule in MERGE_RULES.values():
        assert rule([(floats([largest])[0], masks("1")[0], n) for n in (3, 7, 60_000)])[0][0] == np.float32(largest)


@rules
@pytest.mark.parametrize("num_examples", [2**31, 2**62, 2**64 - 1])
def test_any_number_of_examples_that_a_message_can_hold_is_merged(rule: MergeRule, num_examples: int) -> None:
    parts = [(w, mask, num_examples) for w, mask in zip(floats([2, 0], [4, 0]), masks("10", "10"), strict=True)]
    assert rule(parts)[0].tolist() == [3, 0]


@rules
@pytest.mark.parametrize("num_examples", [0, -1])
def test_a_client_without_examples_is_refused(rule: MergeRule, num_examples: int) -> None:
    parts = [(w, mask, n) for w, mask, n in zip(floats([1], [2]), masks("1", "1"), [5, num_examples], strict=True)]
    with pytest.raises(ArgumentError, match=f"update 1 has {num_examples} examples"):
        rule(parts)


@rules
def test_merging_nothing_is_refused(rule: MergeRule) -> None:
    with pytest.raises(ArgumentError, match="there is no update to merge"):
        rule([])
    with pytest.raises(ArgumentError, match="there is no update to merge"):
        merge_models([], rule, np.ones(2, np.bool_))


@rules
def test_models_of_different_sizes_are_refused(rule: MergeRule) -> None:
    one, two = np.ones(1, np.float32), np.ones(2, np.float32)
    with pytest.raises(ArgumentError, match=r"update 1 has \(2,\) weights and \(2,\) mask positions .* \(1,\)"):
        rule([(one, one > 0, 1), (two, two > 0, 1)])
    with pytest.raises(ArgumentError, match=r"update 0 has \(2,\) weights and \(1,\) mask positions"):
        rule([(two, one > 0, 1)])


def test_sequences_of_different_lengths_are_refused() -> None:
    with pytest.raises(ArgumentError, match="2 weights, 2 masks and 1 sizes do not pair up"):
        weighted_average(floats([1], [2]), [1])
    for function in (nonzero_average, majority_vote, majority_nonzero):
        with pytest.raises(ArgumentError, match="2 weights, 1 masks and 2 sizes do not pair up"):
            function(floats([1], [2]), masks("1"), [1, 1])


def test_a_value_at_a_pruned_position_does_not_count() -> None:
    for function in (nonzero_average, majority_vote, majority_nonzero):
        merged = function(floats([5, 9], [5, 9]), masks("10", "10"), [1, 1])
        assert (merged[0] if isinstance(merged, tuple) else merged).tolist() == [5, 0]


@st.composite
def contributions(draw: st.DrawFn) -> list[Contribution]:
    n = draw(st.integers(1, 6))
    parts: list[Contribution] = []
    for _ in range(draw(st.integers(1, 6))):
        mask = draw(npst.arrays(np.bool_, n))
        w = draw(npst.arrays(np.float32, n, elements=st.floats(-1e6, 1e6, width=32)))
        parts.append((np.where(mask, w, np.float32(0)), mask, draw(st.integers(1, 1000))))
    return parts


@settings(deadline=None, max_examples=50)
@given(contributions())
def test_every_rule_equals_its_formula_taken_position_by_position(parts: list[Contribution]) -> None:
    n, total = len(parts[0][0]), sum(size for _, _, size in parts)
    for name, rule in MERGE_RULES.items():
        merged, mask = rule(parts)
        assert merged.dtype == np.float32
        for i in range(n):
            keepers = [(float(w[i]), size) for w, m, size in parts if m[i]]
            if name in ("majority", "majority-nonzero"):
                expected_kept = len(keepers) / len(parts) >= 0.5
            else:
                expected_kept = bool(keepers)
            weight = sum(size for _, size in keepers) if "nonzero" in name else total
            expected = sum(w * size for w, size in keepers) / weight if keepers and expected_kept else 0.0
            assert bool(mask[i]) == expected_kept
            assert float(merged[i]) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(contributions())
def test_weights_are_exactly_zero_where_the_mask_is(parts: list[Contribution]) -> None:
    for rule in MERGE_RULES.values():
        w, mask = rule(parts)
        assert not w[~mask].any()


@settings(deadline=None, max_examples=50)
@given(contributions(), st.randoms())
def test_votes_do_not_depend_on_order_and_averages_only_by_rounding(parts: list[Contribution], random: object) -> None:
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for rule in MERGE_RULES.values():
        (w, mask), (w2, mask2) = rule(parts), rule(shuffled)
        np.testing.assert_array_equal(mask, mask2)
        np.testing.assert_allclose(w, w2, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(contributions())
def test_contributions_are_left_as_they_are(parts: list[Contribution]) -> None:
    before = [(w.copy(), mask.copy()) for w, mask, _ in parts]
    for rule in MERGE_RULES.values():
        rule(parts)
    for (w, mask, _), (w_before, mask_before) in zip(parts, before, strict=True):
        np.testing.assert_array_equal(w, w_before)
        np.testing.assert_array_equal(mask, mask_before)


@rules
def test_whole_models_are_merged_in_one_pass_that_holds_one_update_at_a_time(rule: MergeRule) -> None:
    class Watched(np.ndarray[tuple[int, ...], np.dtype[np.float32]]):
        """An array that can be weakly referenced."""

    alive: list[weakref.ref[Watched]] = []
    most = 0

    def stream() -> Iterator[ClientUpdate]:
        nonlocal most
        for k in range(5):
            w = np.full(4, k, np.float32).view(Watched)
            alive.append(weakref.ref(w))
            made = update(k, w, np.ones(4, np.bool_), 1, floats([k])[0])
            del w
            yield made
            del made
            most = max(most, sum(ref() is not None for ref in alive))

    merged = merge_models(stream(), rule, np.ones(4, np.bool_))
    assert merged.w.tolist() == [2, 2, 2, 2]
    assert merged.buffers.tolist() == [2]
    assert most <= 2  # the last one given, and at most the one before


@rules
def test_buffers_are_averaged_by_examples_whatever_the_rule_for_parameters(rule: MergeRule) -> None:
    updates = [
        update(k, w, mask, n, buffers)
        for k, (w, mask, n, buffers) in enumerate(
            zip(WEIGHTS, MASKS, EXAMPLES, floats([8, 0], [4, -8], [16, 0]), strict=True)
        )
    ]
    merged = merge_models(updates, rule, np.ones(len(WEIGHTS[0]), np.bool_))
    assert merged.buffers.tolist() == [12, -2]  # (8 + 2*4 + 5*16) / 8; 2*-8 / 8: zeros count
    assert merged.buffers.dtype == np.float32
    w, mask = rule(zip(WEIGHTS, MASKS, EXAMPLES, strict=True))
    assert merged.w.tolist() == w.tolist()
    assert merged.mask.tolist() == mask.tolist()


def test_buffers_are_summed_in_float64() -> None:
    none = np.ones(1, np.float32)
    parts = floats([2.0**24], *[[1.0]] * 8)
    merged = merge_models([update(k, none, none > 0, 1, b) for k, b in enumerate(parts)], average_of, none > 0)
    assert merged.buffers[0] == np.float32((2**24 + 8) / 9)


@rules
def test_merging_within_the_broadcast_mask_gives_the_bits_of_merging_everywhere(rule: MergeRule) -> None:
    rng = np.random.default_rng(1)
    within = rng.random(50) < 0.4
    updates = []
    for k in range(5):
        mask = within & (rng.random(50) < 0.8) if k else within
        updates.append(
            update(k, np.where(mask, rng.normal(size=50), 0).astype(np.float32), mask, 1 + k, floats([k])[0])
        )
    narrow, wide = merge_models(updates, rule, within), merge_models(updates, rule, np.ones(50, np.bool_))
    assert narrow.w.tobytes() == wide.w.tobytes()
    assert narrow.mask.tolist() == wide.mask.tolist()


@rules
def test_an_update_with_survivors_that_were_not_broadcast_is_refused(rule: MergeRule) -> None:
    one = np.ones(3, np.float32)
    with pytest.raises(ArgumentError, match="client 7 has survivors that were not broadcast"):
        merge_models([update(7, one, one > 0, 1, floats([0])[0])], rule, np.array([True, True, False]))
    with pytest.raises(ArgumentError, match=r"client 7 has \(3,\) parameters"):
        merge_models([update(7, one, one > 0, 1, floats([0])[0])], rule, np.ones(2, np.bool_))


def test_configurations_name_the_four_rules() -> None:
    assert {
        "average": average_of,
        "majority": majority_of,
        "majority-nonzero": majority_nonzero_of,
        "nonzero": nonzero_of,
    } == MERGE_RULES
