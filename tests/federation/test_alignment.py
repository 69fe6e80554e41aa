"""Drift and overlap against numbers worked out by hand and against the slow formulas."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from fedsparsify.federation.alignment import Alignment
from fedsparsify.state import Floats, Mask, ModelState


def of(start: list[float], *clients: tuple[list[float], list[int]]) -> Alignment:
    alignment = Alignment(model(start, [1] * len(start)))
    for w, mask in clients:
        alignment.add(model(w, mask))
    return alignment


def model(w: Sequence[float] | Floats, mask: Sequence[int] | Mask) -> ModelState:
    kept = np.array(mask, np.bool_)
    return ModelState(np.where(kept, np.array(w, np.float32), 0).astype(np.float32), kept, np.zeros(0, np.float32))


def test_drift_by_hand() -> None:
    ones = [1, 1]
    # Updates (1, 0), (0, 2) and (-3, 0): cosines 0, -1 and 0, so distances 1, 2 and 1.
    alignment = of([1, 1], ([2, 1], ones), ([1, 3], ones), ([-2, 1], ones))
    assert alignment.client_drift == pytest.approx(4 / 3)


@pytest.mark.parametrize(("second", "drift"), [([3.0, 1.0], 0.0), ([1.0, 2.0], 1.0), ([0.5, 1.0], 2.0)])
def test_drift_of_two_is_their_cosine_distance(second: list[float], drift: float) -> None:
    assert of([1, 1], ([2, 1], [1, 1]), (second, [1, 1])).client_drift == pytest.approx(drift, abs=1e-12)


def test_a_client_that_did_not_move_has_no_direction() -> None:
    ones = [1, 1]
    assert of([1, 1]).client_drift is None
    assert of([1, 1], ([2, 1], ones), ([1, 1], ones)).client_drift is None
    assert of([1, 1], ([2, 1], ones), ([1, 1], ones), ([1, 9], ones)).client_drift == pytest.approx(1.0)


def test_drift_is_the_mean_over_all_pairs() -> None:
    rng = np.random.default_rng(1)
    start = rng.normal(size=50).astype(np.float32)
    clients = start + rng.normal(size=(7, 50)).astype(np.float32) + 0.5
    alignment = Alignment(model(start, np.ones(50, np.bool_)))
    for w in clients:
        alignment.add(model(w, np.ones(50, np.bool_)))
    updates = clients.astype(np.float64) - start
    slow = [1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in combinations(updates, 2)]
    assert alignment.client_drift == pytest.approx(np.mean(slow), abs=1e-12)


def test_overlap_by_hand() -> None:
    w = [1.0] * 4
    # 1100 and 1010 share one of three; 1100 and 0011 none of four; 1010 and 0011 one of three.
    alignment = of([0, 0, 0, 0], (w, [1, 1, 0, 0]), (w, [1, 0, 1, 0]), (w, [0, 0, 1, 1]))
    assert alignment.mask_overlap == pytest.approx((1 / 3 + 0 + 1 / 3) / 3)


def test_overlap_of_equal_masks_is_one_and_of_one_client_nothing() -> None:
    w = [1.0] * 3
    assert of([0, 0, 0], (w, [1, 0, 1])).mask_overlap is None
    assert of([0, 0, 0], (w, [1, 0, 1]), (w, [1, 0, 1])).mask_overlap == 1.0
    assert of([0, 0, 0], (w, [0, 0, 0]), (w, [0, 0, 0])).mask_overlap == 1.0


def test_overlap_is_the_mean_over_all_pairs() -> None:
    rng = np.random.default_rng(2)
    masks = rng.random((5, 77)) < 0.4
    alignment = Alignment(model(np.zeros(77, np.float32), np.ones(77, np.bool_)))
    for mask in masks:
        alignment.add(model(mask.astype(np.float32), mask))
    slow = [(a & b).sum() / (a | b).sum() for a, b in combinations(masks, 2)]
    assert alignment.mask_overlap == pytest.approx(np.mean(slow), abs=1e-12)
