"""What a user may hand over as a data set, what becomes of it, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, TensorDataset

from fedsparsify.data import Dataset, as_dataset
from fedsparsify.errors import DataError

X = np.arange(12, dtype=np.float64).reshape(3, 2, 2)
Y = np.array([0, 2, 1], np.int32)


class Pairs(TorchDataset[Any]):
    """A map-style data set of given pairs that counts how often it is read."""

    def __init__(self, pairs: list[Any]) -> None:
        self.pairs, self.reads = pairs, 0

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return self.pairs[index]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(1.0, 0)])


@pytest.mark.parametrize(
    "obj",
    [
        (X, Y),
        [X, Y],
        (torch.tensor(X, requires_grad=True), torch.tensor(Y)),
        (torch.tensor(X, dtype=torch.bfloat16), torch.tensor(Y)),
        (np.asfortranarray(X), Y.reshape(3, 1)),
        TensorDataset(torch.tensor(X), torch.tensor(Y)),
        Pairs([(torch.tensor(x), int(y)) for x, y in zip(X, Y, strict=True)]),
        Dataset(X, Y),  # type: ignore[arg-type]
    ],
    ids=["arrays", "list", "tensors", "bfloat16", "fortran", "tensor-dataset", "map-style", "dataset"],
)
def test_every_accepted_form_gives_the_same_data_set(obj: object) -> None:
    data = as_dataset(obj)
    assert data.x.dtype == np.float32 and data.x.flags.c_contiguous
    assert data.y.dtype == np.int64 and data.y.flags.c_contiguous
    np.testing.assert_array_equal(data.x, X)
    np.testing.assert_array_equal(data.y, Y)
    assert (len(data), data.num_classes) == (3, 3)


def test_a_map_style_data_set_is_read_once() -> None:
    pairs = Pairs([(x, 0) for x in X])
    as_dataset(pairs)
    assert pairs.reads == 3


def test_arrays_that_fit_are_not_copied() -> None:
    x, y = X.astype(np.float32), Y.astype(np.int64)
    data = as_dataset((x, y))
    assert np.shares_memory(data.x, x) and np.shares_memory(data.y, y)


@pytest.mark.parametrize(("shape", "becomes"), [((3,), (3, 1)), ((3, 1), (3, 1)), ((3, 2), (3, 2))])
def test_floating_targets_are_regression(shape: tuple[int, ...], becomes: tuple[int, ...]) -> None:
    data = as_dataset((X, np.ones(shape)))
    assert data.y.dtype == np.float32 and data.y.shape == becomes
    assert data.num_classes == 0


def test_names_and_augmentation_of_a_data_set_survive() -> None:
    data = Dataset(X.astype(np.float32), Y.astype(np.int64), ("a", "b", "c", "d"), lambda x, rng: x)
    again = as_dataset(data)
    assert again.class_names == data.class_names and again.augment is data.augment
    assert again.num_classes == 4


def test_take_keeps_the_order_asked_for() -> None:
    taken = as_dataset((X, Y)).take(np.array([2, 0]))
    np.testing.assert_array_equal(taken.x, X[[2, 0]])
    np.testing.assert_array_equal(taken.y, [1, 0])


def _with(value: float) -> Any:
    x = X.copy()
    x[1, 0, 1] = value
    return x


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        ((X, Y[:2]), "mine has 3 inputs but 2 labels"),
        ((X[:0], Y[:0]), "mine is empty"),
        ((np.empty((3, 0)), Y), "mine is empty"),
        (Pairs([]), "mine is empty"),
        ((_with(np.nan), Y), "mine: x of example 1 holds NaN"),
        ((_with(-np.inf), Y), "mine: x of example 1 holds NaN"),
        ((_with(1e60), Y), "mine: x of example 1 holds NaN or a value beyond float32"),
        ((X, np.array([1.0, np.inf, 0.0])), "mine: y of example 1 holds NaN"),
        ((X, np.array([1, -1, 0])), "mine: class label -1 of example 1 is negative"),
        ((X, np.zeros((3, 2), np.int64)), "mine: class labels must have shape [3], not [3, 2]"),
        ((X, np.array(["a", "b", "c"])), "mine: y is a ndarray of <U1"),
        ((X, [[1], [1, 2], [3]]), "mine: y cannot be read as an array"),
        ((X.astype(np.complex64), Y), "mine: x is a ndarray of complex64"),
        ((1.0, 2), "mine: x and y must have one row an example"),
        ((X, Y, Y), "mine is a tuple: give a Dataset"),
        (X, "mine is a ndarray: give a Dataset"),
        (None, "mine is a NoneType: give a Dataset"),
        (Stream(), "mine is an IterableDataset"),
        (Pairs([(X[0], 0), X[1]]), "mine: example 1 is a ndarray; every example must be a pair"),
        (Pairs([(X[0], 0), (X[1][:1], 0)]), "mine: the input of example 1 has shape (1, 2), but example 0 has (2, 2)"),
        (Pairs([(X[0], "cat")]), "mine: the label of example 0 is a str"),
        (Dataset(X, Y, ("a", "b")), "mine has label 2, but only 2 class names"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_data_set_is_refused_with_its_place(obj: object, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        as_dataset(obj, "mine")


def test_an_example_that_cannot_be_read_is_named() -> None:
    class Torn(Pairs):
        def __getitem__(self, index: int) -> Any:
            if index == 1:
                raise KeyError("picture-1.png")
            return super().__getitem__(index)

    with pytest.raises(DataError, match=r"reading example 1 failed with KeyError: 'picture-1.png' \(.*, line \d+\)"):
        as_dataset(Torn([(x, 0) for x in X]))
