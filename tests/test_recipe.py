"""Raw examples become inputs exactly as the loaders make them (each loader's own test says so), or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsparsify.data import load
from fedsparsify.errors import ArgumentError
from fedsparsify.recipe import Recipe


def test_digits_come_out_as_the_loader_has_them() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    _, test = load("digits")
    bundle = datasets.load_digits()
    for_test = np.zeros(len(bundle.target), np.bool_)
    for_test[np.argsort(bundle.target, kind="stable")[::5]] = True
    assert test.recipe is not None and test.recipe.labels == test.class_names
    assert np.array_equal(test.recipe.prepare(bundle.images[for_test], (1, 8, 8)), test.x)


def test_a_table_comes_out_as_the_loader_has_it(tmp_path: Path) -> None:
    rows = [f"p{age},{age},{age % 2},{10 * age + 0.1},7,A" for age in range(20, 45)]
    (tmp_path / "fcon1000.csv").write_text("\n".join(["sub_id,age,sex,volume,flat,site", *rows]) + "\n")
    _, test = load("brain-age", tmp_path)
    recipe = test.recipe
    assert recipe is not None and recipe.columns == ("sex", "volume", "flat")
    raw = np.array([[age % 2, 10 * age + 0.1, 7] for age in range(22, 45, 5)])
    assert np.array_equal(recipe.prepare(raw, (3,)), test.x)
    ages = test.y[:, 0] * recipe.target_scale + recipe.target_mean
    assert ages == pytest.approx(range(22, 45, 5), abs=1e-4)


def test_each_example_is_standardised_by_itself() -> None:
    x = Recipe("volume", (2, 2), each=True).prepare(np.array([[[1, 1], [3, 3]], [[5, 5], [9, 9]]]), (1, 2, 2))
    assert x.tolist() == [[[[-1, -1], [1, 1]]]] * 2


def test_examples_are_not_changed() -> None:
    raw = np.ones((1, 2), np.float32)
    Recipe(shape=(2,), scale=2.0, mean=(1.0,)).prepare(raw, (2,))
    assert raw.tolist() == [[1, 1]]


def test_no_examples_are_no_inputs() -> None:
    for each in (False, True):
        assert Recipe(shape=(2,), each=each).prepare(np.zeros((0, 2)), (2,)).shape == (0, 2)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.zeros((1, 3)), r"shape \[1, 3\], but must have \[N, 2\]"),
        (np.zeros(2), r"one example is x\[np.newaxis\]"),
        (np.float32(1), "must have"),
        (np.array([["a", "b"]]), "must be real numbers"),
        (np.array([[1j, 2]]), "must be real numbers"),
        (np.array([[None, 2]]), "must be real numbers"),
        ([[1, 2], [3]], "bring all to one shape"),
        (np.array([[0, 1], [np.nan, 0]]), "example 1 holds NaN"),
        (np.array([[0, np.inf]]), "example 0 holds"),
        (np.array([[0, 1e300]]), "beyond float32"),
    ],
)
def test_wrong_examples_are_refused(raw: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Recipe(shape=(2,)).prepare(raw, (2,))


def test_one_text_in_place_of_a_list_is_refused() -> None:
    with pytest.raises(ArgumentError, match="a list of texts"):
        Recipe("text", words=("a",), length=2).prepare("a b", (2,))


def test_a_constant_volume_is_refused() -> None:
    with pytest.raises(ArgumentError, match="example 0 holds NaN"):
        Recipe("volume", (2,), each=True).prepare(np.ones((1, 2)), (2,))


def test_a_network_of_another_input_is_refused() -> None:
    with pytest.raises(ArgumentError, match="do not make inputs"):
        Recipe(shape=(4,)).prepare(np.ones((1, 4)), (5,))
