"""How many parameters each layer keeps: shares worked out by hand, and what holds for any of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparsify.algorithms.densities import counts_of, erdos_renyi_kernel, keep_by_layer, share_out
from fedsparsify.errors import ArgumentError
from fedsparsify.layout import ParameterLayout, Slot
from fedsparsify.purge import kept


def layout_of(*shapes: tuple[int, ...]) -> ParameterLayout:
    slots: list[Slot] = []
    for i, shape in enumerate(shapes):
        slots.append(Slot(f"t{i}", shape, slots[-1].offset + slots[-1].size if slots else 0))
    return ParameterLayout(tuple(slots))


@pytest.mark.parametrize(
    ("total", "shares", "sizes", "expected"),
    [
        (10, [1, 1, 2], [20, 20, 20], [3, 2, 5]),  # 2.5, 2.5, 5: the tie goes to the first
        (10, [1, 1, 2], [2, 20, 20], [2, 3, 5]),  # 8 left over for 1 : 2 are 2.67 and 5.33
        (10, [5, 3, 2], [9, 9, 9], [5, 3, 2]),
        (7, [1, 1, 1], [9, 9, 9], [3, 2, 2]),
        (12, [8, 2, 2], [3, 5, 9], [3, 5, 4]),  # 9 left for 1 : 1 are 4.5 each: the tie goes to the first
        (12, [6, 3, 1], [2, 4, 9], [2, 4, 6]),  # one full layer fills the next: 10 for 3 : 1 are 7.5 and 2.5
        (6, [1, 0, 0], [2, 3, 9], [2, 1, 3]),  # nobody else has a share: 4 left by size, 1 and 3
        (0, [1, 2], [3, 3], [0, 0]),
        (6, [0, 2], [3, 3], [3, 3]),
        (5, [0, 0], [4, 6], [2, 3]),
        (3, [0.3, 0.7], [0, 5], [0, 3]),
    ],
)
def test_a_budget_is_shared_out_in_proportion(
    total: int, shares: list[float], sizes: list[int], expected: list[int]
) -> None:
    assert share_out(total, shares, sizes).tolist() == expected


@pytest.mark.parametrize("total", [7, -1])
def test_a_budget_that_no_layers_can_hold_is_refused(total: int) -> None:
    with pytest.raises(ArgumentError, match=rf"{total} parameters cannot be shared out over layers that hold 6"):
        share_out(total, [1, 1], [2, 4])


layers = st.lists(
    st.tuples(st.floats(0, 1e6, allow_subnormal=False) | st.floats(1e-30, 1e-6), st.integers(0, 10**7)),
    min_size=1,
    max_size=8,
)


@settings(deadline=None)
@given(layers, st.data())
def test_shares_add_up_and_nobody_gets_more_than_fits(pairs: list[tuple[float, int]], data: st.DataObject) -> None:
    shares, sizes = [share for share, _ in pairs], [size for _, size in pairs]
    total = data.draw(st.integers(0, sum(sizes)))
    counts = share_out(total, shares, sizes)
    assert counts.dtype == np.int64 and counts.sum() == total
    assert (counts >= 0).all() and (counts <= sizes).all()


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=8).filter(any), st.integers(0, 10**6))
def test_where_nobody_is_full_shares_are_proportional_to_less_than_one(shares: list[int], total: int) -> None:
    counts = share_out(total, shares, [10**6] * len(shares))
    ideal = total * np.array(shares) / sum(shares)
    assert (np.abs(counts - ideal) < 1).all()


@settings(deadline=None)
@given(layers, st.data())
def test_who_is_not_full_gets_no_less_than_another_of_the_same_or_a_smaller_share(
    pairs: list[tuple[float, int]], data: st.DataObject
) -> None:
    shares, sizes = [share for share, _ in pairs], [size for _, size in pairs]
    counts = share_out(data.draw(st.integers(0, sum(sizes))), shares, sizes)
    if not any(share > 0 and count < size for share, size, count in zip(shares, sizes, counts, strict=True)):
        return  # the rest is shared out by size
    for i, share in enumerate(shares):
        for j, other in enumerate(shares):
            if share >= other and counts[i] < sizes[i]:
                assert counts[i] >= counts[j] - 1


def test_erdos_renyi_kernel_gives_wide_layers_a_smaller_density() -> None:
    # 8 + 2 + 4 = 14, 7 kept: the 2 of the vector, and 5 for (2+4) : (2+2) = 3 and 2.
    assert erdos_renyi_kernel(layout_of((2, 4), (2,), (2, 2)), 0.5).tolist() == [3, 2, 2]
    # 4*2*3*3 = 72, 4, 10*4 = 40, 10: 126, 126 - floor(113.4) = 13 and 14 one-dimensional ones: no matrix keeps any.
    assert erdos_renyi_kernel(layout_of((4, 2, 3, 3), (4,), (10, 4), (10,)), 0.9).tolist() == [0, 4, 0, 9]
    # 126 - floor(94.5) = 32, 18 for (4+2+3+3) : (10+4) = 8.31 and 9.69
    assert erdos_renyi_kernel(layout_of((4, 2, 3, 3), (4,), (10, 4), (10,)), 0.75).tolist() == [8, 4, 10, 10]


def test_a_layer_that_would_be_denser_than_full_is_kept_whole() -> None:
    # 100 + 1 = 101, 101 - floor(50.5) = 51: 20 : 2 would be 46.4 and 4.6
    assert erdos_renyi_kernel(layout_of((10, 10), (1, 1)), 0.5).tolist() == [50, 1]


def test_nothing_is_pruned_at_sparsity_0() -> None:
    assert erdos_renyi_kernel(layout_of((3, 4), (3,), (2, 3), (2,)), 0).tolist() == [12, 3, 6, 2]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=6),
    st.floats(0, 1, exclude_max=True),
)
def test_erdos_renyi_kernel_keeps_the_exact_number_and_vectors_first(shapes: list[list[int]], sparsity: float) -> None:
    layout = layout_of(*map(tuple, shapes))
    counts = erdos_renyi_kernel(layout, sparsity)
    sizes = np.array([slot.size for slot in layout.parameters])
    vector = np.array([len(slot.shape) == 1 for slot in layout.parameters])
    assert counts.sum() == kept(layout.n, sparsity) and (counts >= 0).all() and (counts <= sizes).all()
    assert (counts[vector] == sizes[vector]).all() or not counts[~vector].any()


def test_each_layer_keeps_its_best_within_the_mask() -> None:
    layout = layout_of((2, 2), (3,))
    scores = np.array([1, 9, 3, 2, 5, 5, 5], np.float32)
    mask = np.array([1, 0, 1, 1, 1, 1, 1], np.bool_)
    out = keep_by_layer(scores, np.array([2, 1]), layout, mask)
    assert np.flatnonzero(out).tolist() == [2, 3, 4]  # not the pruned 9; the tie goes to the lower index
    assert counts_of(out, layout).tolist() == [2, 1]
    assert np.count_nonzero(mask) == 6


def test_a_layer_with_fewer_survivors_than_it_may_keep_keeps_them_all() -> None:
    layout = layout_of((2, 2), (3,))
    mask = np.array([1, 0, 0, 0, 1, 1, 0], np.bool_)
    out = keep_by_layer(np.ones(7, np.float32), np.array([3, 0]), layout, mask)
    assert np.flatnonzero(out).tolist() == [0]
