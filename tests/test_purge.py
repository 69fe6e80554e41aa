"""Purge: exactly n - floor(s n) survivors of largest magnitude, ties to the lower index, and nothing comes back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedsparsify.errors import ArgumentError
from fedsparsify.layout import ParameterLayout, Slot
from fedsparsify.purge import (
    CRITERIA,
    SCOPES,
    exact_mask,
    global_scope,
    kept,
    magnitude,
    magnitude_mask,
    make_purge,
    per_layer_scope,
    prunable_positions,
)
from fedsparsify.state import Floats, Mask

# A 2x3 weight, a bias of 2, a 1x2 weight, a bias of 1: n = 11.
LAYOUT = ParameterLayout(
    (Slot("a.weight", (2, 3), 0), Slot("a.bias", (2,), 6), Slot("b.weight", (1, 2), 8), Slot("b.bias", (1,), 10))
)
ALL = np.ones(11, np.bool_)


def f32(values: object) -> Floats:
    return np.array(values, np.float32)


def mask_of(*positions: int, n: int = 11) -> Mask:
    mask = np.zeros(n, np.bool_)
    mask[list(positions)] = True
    return mask


def slow_mask(scores: Floats, count: int, mask: Mask) -> Mask:
    """The definition, by a full sort: larger scores first, among equals the lower index."""
    alive = [i for i in range(len(scores)) if mask[i]]
    best = sorted(alive, key=lambda i: (-float(scores[i]), i))[:count]
    return mask_of(*best, n=len(scores))


# Few distinct values, so that ties are the rule; zeros of both signs and infinity among them.
tied_floats = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, 1e-45, math.inf])
weights_and_masks = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        npst.arrays(np.float32, n, elements=tied_floats | st.floats(-4, 4, width=32)), npst.arrays(np.bool_, n)
    )
)


@pytest.mark.parametrize(
    ("n", "sparsity", "count"),
    [
        (118_282, 0.95, 5_915),  # floor(112,367.9) = 112,367
        (1_609_930, 0.95, 80_497),  # floor(1,529,433.5) = 1,529,433
        (118_282, 0.0, 118_282),
        (10, 0.5, 5),
        (7, 0.5, 4),  # floor(3.5) = 3
        (3, 0.9, 1),  # floor(2.7) = 2
        (1, 0.99, 1),
    ],
)
def test_the_number_kept_is_n_minus_floor_of_s_n(n: int, sparsity: float, count: int) -> None:
    assert kept(n, sparsity) == count


@settings(deadline=None)
@given(st.integers(1, 10**7), st.floats(0, 1, exclude_max=True))
def test_at_least_one_parameter_is_kept_at_any_sparsity(n: int, sparsity: float) -> None:
    assert 1 <= kept(n, sparsity) <= n


@pytest.mark.parametrize("sparsity", [1.0, 1.5, -0.1, math.nan])
def test_a_sparsity_outside_its_range_is_refused(sparsity: float) -> None:
    with pytest.raises(ArgumentError, match=rf"sparsity = {sparsity} must be at least 0 and less than 1"):
        kept(10, sparsity)
    with pytest.raises(ArgumentError, match="sparsity"):
        magnitude_mask(np.ones(10, np.float32), sparsity)


def test_the_fashion_mnist_network_keeps_5915_parameters_at_95_percent() -> None:
    w = np.random.default_rng(0).normal(size=118_282).astype(np.float32)
    mask = magnitude_mask(w, 0.95)
    assert np.count_nonzero(mask) == 5_915
    assert np.abs(w[mask]).min() > np.abs(w[~mask]).max()


def test_the_largest_magnitudes_survive_whatever_their_sign() -> None:
    w = f32([0.1, -5, 3, 0, -0.2, 4])
    assert magnitude_mask(w, 0.5).tolist() == [False, True, True, False, False, True]


def test_ties_go_to_the_lower_index() -> None:
    # 8 - floor(0.5 * 8) = 4: the 3, then three of the five with magnitude 2, from the left.
    w = f32([2, 1, -2, 2, 3, -2, 1, 2])
    assert np.flatnonzero(magnitude_mask(w, 0.5)).tolist() == [0, 2, 3, 4]
    assert np.flatnonzero(magnitude_mask(np.zeros(5, np.float32), 0.6)).tolist() == [0, 1]


def test_a_pruned_parameter_never_comes_back() -> None:
    w = f32([9, 1, 2, 3])
    assert magnitude_mask(w, 0.5, np.array([False, True, True, True])).tolist() == [False, False, True, True]


def test_sparsity_counts_all_parameters_not_only_survivors() -> None:
    # Of ten, five are pruned already; at 0.7 three are kept, not 30% of the five.
    w = np.arange(10, dtype=np.float32)
    assert np.flatnonzero(magnitude_mask(w, 0.7, w < 5)).tolist() == [2, 3, 4]


def test_zeros_among_survivors_are_kept_before_any_pruned_parameter() -> None:
    w = f32([0, 7, 0, 0, 8])
    # Two of the three surviving zeros are kept, the lower indices; the pruned 7 and 8 are not.
    assert magnitude_mask(w, 0.6, np.array([True, False, True, True, False])).tolist() == [
        True,
        False,
        True,
        False,
        False,
    ]


def test_where_fewer_survive_than_are_wanted_all_of_them_stay() -> None:
    mask = np.array([True, False, True, False])
    kept_mask = magnitude_mask(f32([1, 2, 3, 4]), 0.25, mask)
    assert kept_mask.tolist() == mask.tolist()
    kept_mask[:] = False  # a copy: the caller's mask is its own
    assert mask.tolist() == [True, False, True, False]


def test_nan_among_survivors_is_refused_with_its_place() -> None:
    with pytest.raises(ArgumentError, match="parameter 2 has the score NaN"):
        magnitude_mask(f32([1, 2, math.nan, 4]), 0.5)


def test_nan_at_a_pruned_place_is_of_no_concern() -> None:
    mask = np.array([True, True, False, True])
    assert magnitude_mask(f32([1, 2, math.nan, 4]), 0.5, mask).tolist() == [False, True, False, True]


def test_scores_and_mask_of_different_lengths_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"scores have shape \(3,\), but the mask has \(4,\)"):
        magnitude_mask(np.ones(3, np.float32), 0.5, np.ones(4, np.bool_))


def test_keeping_none_gives_an_empty_mask() -> None:
    assert not exact_mask(f32([1, 2]), 0, np.ones(2, np.bool_)).any()


@settings(deadline=None)
@given(weights_and_masks, st.data())
def test_selection_equals_a_full_sort(pair: tuple[Floats, Mask], data: st.DataObject) -> None:
    w, mask = pair
    count = data.draw(st.integers(0, len(w)))
    np.testing.assert_array_equal(exact_mask(np.abs(w), count, mask), slow_mask(np.abs(w), count, mask))


@settings(deadline=None)
@given(weights_and_masks, st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4))
def test_masks_are_nested_and_exact_however_weights_move(pair: tuple[Floats, Mask], sparsities: list[float]) -> None:
    w, mask = pair
    for sparsity in sorted(sparsities):
        after = magnitude_mask(w, sparsity, mask)
        assert not (after & ~mask).any()
        assert np.count_nonzero(after) == min(kept(len(w), sparsity), np.count_nonzero(mask))
        mask, w = after, np.roll(w, 1)


@settings(deadline=None)
@given(weights_and_masks)
def test_arguments_are_left_as_they_are(pair: tuple[Floats, Mask]) -> None:
    w, mask = pair
    w_before, mask_before = w.copy(), mask.copy()
    magnitude_mask(w, 0.5, mask)
    np.testing.assert_array_equal(w, w_before)
    np.testing.assert_array_equal(mask, mask_before)


def test_per_layer_scope_prunes_every_tensor_to_the_same_sparsity() -> None:
    w = f32([1, 2, 3, 4, 5, 6, 0.2, 0.1, 100, 200, 0.01])
    purge = make_purge(LAYOUT, scope=per_layer_scope)
    # At 0.5: 6 - 3 of the weight, 2 - 1 of its bias, 2 - 1 of the second weight, 1 - 0 of the last bias.
    assert np.flatnonzero(purge(w, 0.5, ALL)).tolist() == [3, 4, 5, 6, 9, 10]
    # Global scope on the same numbers: 11 - 5 = 6 largest overall.
    assert np.flatnonzero(make_purge(LAYOUT)(w, 0.5, ALL)).tolist() == [2, 3, 4, 5, 8, 9]


def test_per_layer_scope_keeps_masks_nested_in_every_tensor() -> None:
    w = f32([9, 8, 7, 1, 2, 3, 1, 1, 1, 1, 1])
    alive = mask_of(3, 4, 5, 7, 8, 10)
    assert np.flatnonzero(make_purge(LAYOUT, scope=per_layer_scope)(w, 0.7, alive)).tolist() == [4, 5, 7, 8, 10]


def test_prunable_weights_leaves_one_dimensional_tensors_alone() -> None:
    assert np.flatnonzero(~prunable_positions(LAYOUT, "weights")).tolist() == [6, 7, 10]
    assert prunable_positions(LAYOUT, "all").all()
    w = f32([8, 7, 6, 5, 4, 3, 0, 0, 2, 1, 0])
    # Of 8 prunable ones 8 - 6 = 2 are kept at 0.75, and all three biases.
    assert np.flatnonzero(make_purge(LAYOUT, prunable="weights")(w, 0.75, ALL)).tolist() == [0, 1, 6, 7, 10]
    # Within each tensor: 6 - 4 = 2 and 2 - 1 = 1.
    purge = make_purge(LAYOUT, scope=per_layer_scope, prunable="weights")
    assert np.flatnonzero(purge(w, 0.75, ALL)).tolist() == [0, 1, 6, 7, 8, 10]


def test_a_network_without_prunable_parameters_is_left_whole() -> None:
    layout = ParameterLayout((Slot("scale", (3,), 0),))
    for scope in SCOPES.values():
        assert make_purge(layout, scope=scope, prunable="weights")(np.ones(3, np.float32), 0.9, ALL[:3]).all()


def test_another_word_for_prunable_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r'purge\.prunable = "biases" must be "all" or "weights"'):
        make_purge(LAYOUT, prunable="biases")


def test_a_purge_refuses_sparsity_one() -> None:
    for scope in SCOPES.values():
        with pytest.raises(ArgumentError, match=r"sparsity = 1\.0"):
            make_purge(LAYOUT, scope=scope)(np.ones(11, np.float32), 1.0, ALL)


def test_a_criterion_is_any_function_of_the_weights() -> None:
    smallest_first = make_purge(LAYOUT, criterion=lambda w: -np.abs(w))
    w = np.arange(11, dtype=np.float32)
    assert np.flatnonzero(smallest_first(w, 0.8, ALL)).tolist() == [0, 1, 2]


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.floats(0, 1, exclude_max=True), st.randoms())
def test_every_scope_keeps_the_exact_number_of_each_of_its_groups(
    sizes: list[int], sparsity: float, random: object
) -> None:
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    layout = ParameterLayout(
        tuple(Slot(f"t{i}", (size, 1), int(offsets[i])) for i, size in enumerate(sizes)),
    )
    w = np.array([random.choice([0.0, 1.0, -1.0, 2.5]) for _ in range(layout.n)], np.float32)  # type: ignore[attr-defined]
    alive = np.ones(layout.n, np.bool_)
    for scope in (global_scope, per_layer_scope):
        mask = make_purge(layout, scope=scope)(w, sparsity, alive)
        for group in scope(layout, alive):
            np.testing.assert_array_equal(
                mask[group], slow_mask(magnitude(w)[group], kept(group.size, sparsity), alive[group])
            )


def test_configurations_name_the_papers_choices() -> None:
    assert CRITERIA["magnitude"] is magnitude
    assert {"global": global_scope, "per-layer": per_layer_scope} == SCOPES
