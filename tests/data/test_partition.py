"""Partitions: every example once, every client something, and each kind's own promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedsparsify.data.partition import Part, by_classes, dirichlet, iid, quantity_skew, summary
from fedsparsify.errors import ArgumentError

Labels = NDArray[np.int64]
Split = Callable[[Labels, int, np.random.Generator], list[Part]]

# A new partition = one line here.
SPLITS: dict[str, Split] = {
    "iid": iid,
    "by_classes": partial(by_classes, classes_per_client=2),
    "dirichlet 0.1": partial(dirichlet, alpha=0.1),
    "dirichlet 100": partial(dirichlet, alpha=100.0),
    "quantity_skew 0.1": partial(quantity_skew, alpha=0.1),
    "quantity_skew 100": partial(quantity_skew, alpha=100.0),
}

seeds = st.integers(0, 2**32 - 1)
label_lists = st.lists(st.integers(0, 6), min_size=1, max_size=80)


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _uses_every_example_once(parts: list[Part], n: int) -> bool:
    return bool(np.array_equal(np.sort(np.concatenate(parts)), np.arange(n)))


@pytest.mark.parametrize("name", SPLITS)
@given(labels=label_lists, clients=st.integers(1, 30), seed=seeds)
def test_every_example_has_one_client_and_every_client_an_example(
    name: str, labels: list[int], clients: int, seed: int
) -> None:
    y = np.array(labels)
    try:
        parts = SPLITS[name](y, clients, _rng(seed))
    except ArgumentError:
        # Only the split by classes may refuse where there are examples enough; what it refuses is tested below.
        assert clients > len(y) or name == "by_classes"
        return
    assert len(parts) == clients
    assert all(len(part) and part.dtype == np.int64 and np.all(np.diff(part) > 0) for part in parts)
    assert _uses_every_example_once(parts, len(y))


@pytest.mark.parametrize("name", SPLITS)
def test_the_generator_decides_everything(name: str) -> None:
    y = np.repeat(np.arange(5), 40)
    once, again, other = (SPLITS[name](y, 10, _rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(once, other, strict=True))


@given(n=st.integers(1, 200), clients=st.integers(1, 200), seed=seeds)
def test_iid_sizes_differ_by_at_most_one(n: int, clients: int, seed: int) -> None:
    if clients <= n:
        sizes = [len(part) for part in iid(np.zeros(n), clients, _rng(seed))]
        assert max(sizes) - min(sizes) <= 1


@given(data=st.data(), classes=st.integers(1, 12), clients=st.integers(1, 40), seed=seeds)
def test_each_client_has_exactly_c_classes_wherever_that_is_possible(
    data: st.DataObject, classes: int, clients: int, seed: int
) -> None:
    c = data.draw(st.integers(min(classes, math.ceil(classes / clients)), classes))
    most = math.ceil(clients * c / classes)
    sizes = data.draw(st.lists(st.integers(most, 3 * most), min_size=classes, max_size=classes))
    # Class numbers need not be contiguous, nor examples sorted.
    y = _rng(seed).permutation(np.repeat(np.arange(classes) * 3 + 1, sizes))
    parts = by_classes(y, clients, _rng(seed), c)
    assert _uses_every_example_once(parts, len(y))
    assert all(len(np.unique(y[part])) == c for part in parts)

    for label, size in zip(np.unique(y), sizes, strict=True):
        chunks = [int(np.sum(y[part] == label)) for part in parts]
        held = [chunk for chunk in chunks if chunk]
        assert len(held) in (most - 1, most), "a class is cut into as many chunks as any other, give or take one"
        assert max(held) - min(held) <= 1 and sum(held) == size


def test_the_papers_setting_of_ten_clients_with_two_classes() -> None:
    y = np.tile(np.arange(10), 600)
    counts = np.array(summary(y, by_classes(y, 10, _rng(7), 2), 10))
    assert set(counts.ravel().tolist()) == {0, 300}
    assert (counts > 0).sum(axis=0).tolist() == [2] * 10 and (counts > 0).sum(axis=1).tolist() == [2] * 10


def test_alpha_sets_how_unequal_a_dirichlet_partition_is() -> None:
    y = np.repeat(np.arange(10), 500)

    def largest_share(alpha: float) -> float:
        counts = np.array(summary(y, dirichlet(y, 10, _rng(3), alpha), 10))
        return float((counts.max(axis=0) / 500).mean())

    assert largest_share(0.05) > 0.6 > 0.3 > largest_share(1.0) * 0.9 > largest_share(1000.0) > 0.1


def test_quantity_skew_changes_sizes_and_leaves_classes_iid() -> None:
    y = np.repeat(np.arange(4), 5000)
    parts = quantity_skew(y, 5, _rng(3), 0.5)
    sizes = [len(part) for part in parts]
    assert max(sizes) > 3 * min(sizes)
    for part in parts:
        if len(part) > 1000:
            np.testing.assert_allclose(np.bincount(y[part]) / len(part), 0.25, atol=0.05)


@pytest.mark.parametrize("alpha", [1e-300, 1e-12, 1e-3, 1e3, 1e300])
@pytest.mark.parametrize("split", [dirichlet, quantity_skew])
def test_extreme_alphas_still_give_a_partition(split: Callable[..., list[Part]], alpha: float) -> None:
    y = np.repeat(np.arange(3), 20)
    for seed in range(20):
        for clients in (1, 2, 60):
            parts = split(y, clients, _rng(seed), alpha)
            assert all(len(part) for part in parts) and _uses_every_example_once(parts, 60)


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize(
    ("clients", "message"),
    [
        (0, "number of clients = 0 must be at least 1"),
        (-2, "number of clients = -2 must be at least 1"),
        (31, "31 clients cannot share 30 examples: each needs at least one"),
    ],
)
def test_an_impossible_number_of_clients_is_refused(name: str, clients: int, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        SPLITS[name](np.repeat(np.arange(3), 10), clients, _rng(1))


@pytest.mark.parametrize(
    ("clients", "c", "message"),
    [
        (4, 0, "classes per client = 0 must be from 1 to 3"),
        (4, 4, "classes per client = 4 must be from 1 to 3"),
        (
            2,
            1,
            "2 clients with 1 classes each cannot hold all 3 classes: use at least 2 classes per client or 3 clients",
        ),
        (6, 2, "class 5 has 3 examples, too few for the 4 of 6 clients"),
    ],
)
def test_impossible_classes_per_client_are_refused(clients: int, c: int, message: str) -> None:
    labels = np.array([0] * 10 + [1] * 10 + [5] * 3)
    with pytest.raises(ArgumentError, match=message):
        by_classes(labels, clients, _rng(1), c)


@pytest.mark.parametrize("split", [dirichlet, quantity_skew])
@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf, math.nan])
def test_an_alpha_that_is_not_above_zero_is_refused(split: Callable[..., list[Part]], alpha: float) -> None:
    with pytest.raises(ArgumentError, match=f"alpha = {alpha} must be a finite number above 0"):
        split(np.zeros(9, np.int64), 3, _rng(1), alpha)


@pytest.mark.parametrize("labels", [np.zeros(9), np.zeros((9, 1), np.int64)])
def test_targets_of_regression_cannot_be_split_by_class(labels: Labels) -> None:
    for split in (partial(by_classes, classes_per_client=1), partial(dirichlet, alpha=1.0)):
        with pytest.raises(ArgumentError, match="are no class labels"):
            split(labels, 3, _rng(1))


def test_the_summary_counts_and_refuses_labels_beyond_the_classes() -> None:
    labels = np.array([2, 0, 2, 1])
    assert summary(labels, [np.array([0, 2]), np.array([1, 3])], 4) == [[0, 0, 2, 0], [1, 1, 0, 0]]
    with pytest.raises(ArgumentError, match="labels go from 0 to 2, outside 0 to 1"):
        summary(labels, [], 2)
