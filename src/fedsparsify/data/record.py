"""What a data set is, and how a user's arrays, tensors or PyTorch data sets become one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DataError
from ..plugins import describe
from ..recipe import Recipe
from ..state import Floats

__all__ = ["Augment", "Dataset", "as_dataset"]

Augment = Callable[[Floats, np.random.Generator], Floats]

# They have a length and items too, but are not collections of (x, y).
_NOT_MAP_STYLE = (str, bytes, dict, list, tuple, np.ndarray, torch.Tensor)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples in memory, normalised once, ready for training.

    Attributes:
        x: float32[N, ...], C-contiguous inputs.
        y: int64[N] class labels, or float32[N, d] regression targets.
        class_names: names of the classes; empty for regression, or where nobody named them.
        augment: changes a whole epoch's inputs (float32[N, ...], generator) -> float32[N, ...] before its batches are
            cut, without touching its argument; None for none.
        groups: int64[N] index into ``group_names`` of each example's group, such as the hospital that it comes from;
            None where there are none. Scores are recorded by group, and a partition can make each group a client.
        group_names: names of the groups, without repeats; also of those that none of these examples belongs to.
        y_scale: how many of the unit that errors are reported in make one unit of ``y``, e.g. 14.2 years where ages
            were divided by their standard deviation; 1 where ``y`` is in that unit.
        recipe: how raw examples became ``x``, which an exported model does again; None where raw ones are ``x``.
    """

    x: Floats
    y: NDArray[np.int64] | Floats
    class_names: tuple[str, ...] = ()
    augment: Augment | None = None
    groups: NDArray[np.int64] | None = None
    group_names: tuple[str, ...] = ()
    y_scale: float = 1.0
    recipe: Recipe | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def num_classes(self) -> int:
        """Number of classes: named ones, else the largest label plus one; 0 for regression."""
        if not np.issubdtype(self.y.dtype, np.integer):
            return 0
        return len(self.class_names) or int(self.y.max()) + 1

    def take(self, indices: NDArray[np.int64]) -> Dataset:
        """Return the chosen examples, in the order given."""
        groups = None if self.groups is None else self.groups[indices]
        return replace(self, x=self.x[indices], y=self.y[indices], groups=groups)

    def part(self, start: int, stop: int) -> Dataset:
        """Return consecutive examples as views, without copying."""
        groups = None if self.groups is None else self.groups[start:stop]
        return replace(self, x=self.x[start:stop], y=self.y[start:stop], groups=groups)


def as_dataset(obj: object, what: str = "the data set") -> Dataset:
    """Convert what a user has into a checked :class:`Dataset`.

    Inputs become float32 as they are: scaling and normalising is the user's. Integer ``y`` are class labels from 0 and
    become int64[N]; floating ``y`` are regression targets and become float32[N, d], [N] being taken as [N, 1]. Arrays
    that already fit are not copied.

    Args:
        obj: a :class:`Dataset`; a pair ``(x, y)`` of NumPy arrays or tensors; or a map-style
            ``torch.utils.data.Dataset`` of such pairs, which is read and stacked once.
        what: how messages name it, e.g. ``the training set of mine:load``.

    Raises:
        DataError: it is none of these, is empty, has inputs and labels of different lengths, a value that is not
            finite, a negative label, or examples of different shapes.

    >>> data = as_dataset((np.eye(3), np.array([0, 2, 1])))
    >>> data.x.dtype, data.y.dtype, data.num_classes
    (dtype('float32'), dtype('int64'), 3)
    """
    if isinstance(obj, Dataset):
        x, y = _checked(obj.x, obj.y, what)
        named = len(obj.class_names)
        if named and np.issubdtype(y.dtype, np.integer) and y.max() >= named:
            raise DataError(f"{what} has label {y.max()}, but only {named} class names: name every class, from 0")
        if not 0 < obj.y_scale < float("inf"):
            raise DataError(f"{what} has y_scale = {obj.y_scale}, which must be more than 0 and finite")
        return replace(obj, x=x, y=y, groups=_groups(obj, what))
    if isinstance(obj, (tuple, list)) and len(obj) == 2:
        return Dataset(*_checked(obj[0], obj[1], what))
    if isinstance(obj, torch.utils.data.TensorDataset) and len(obj.tensors) == 2:
        return Dataset(*_checked(obj.tensors[0], obj.tensors[1], what))
    if isinstance(obj, torch.utils.data.IterableDataset):
        raise DataError(f"{what} is an IterableDataset, which has no length: give a map-style one or a pair (x, y)")
    if hasattr(obj, "__getitem__") and hasattr(obj, "__len__") and not isinstance(obj, _NOT_MAP_STYLE):
        return Dataset(*_checked(*_stacked(obj, what), what))
    raise DataError(
        f"{what} is a {type(obj).__name__}: give a Dataset, a pair (x, y) of arrays, or a map-style torch Dataset"
    )


def _groups(data: Dataset, what: str) -> NDArray[np.int64] | None:
    if data.groups is None:
        return None
    groups = _array(data.groups, f"{what}: groups")
    if groups.shape != (len(data.x),) or groups.dtype.kind not in "ui":
        raise DataError(f"{what}: groups must be one whole number an example, not {groups.dtype}{list(groups.shape)}")
    if groups.min() < 0 or groups.max() >= len(data.group_names):
        raise DataError(
            f"{what} has groups from {groups.min()} to {groups.max()}, but {len(data.group_names)} group names: name "
            "every group, from 0"
        )
    return np.ascontiguousarray(groups, np.int64)


def _stacked(items: Any, what: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read every (x, y) of a map-style data set, once."""
    if len(items) == 0:
        raise DataError(f"{what} is empty: it needs at least one example")
    xs: list[NDArray[Any]] = []
    ys: list[NDArray[Any]] = []
    for i in range(len(items)):
        try:
            item = items[i]
        except Exception as error:
            raise DataError(f"{what}: reading example {i} failed with {describe(error)}") from error
        if not (isinstance(item, (tuple, list)) and len(item) == 2):
            raise DataError(f"{what}: example {i} is a {type(item).__name__}; every example must be a pair (x, y)")
        xs.append(_array(item[0], f"{what}: the input of example {i}"))
        ys.append(_array(item[1], f"{what}: the label of example {i}"))
        for name, values in (("input", xs), ("label", ys)):
            if values[i].shape != values[0].shape:
                raise DataError(
                    f"{what}: the {name} of example {i} has shape {values[i].shape}, but example 0 has "
                    f"{values[0].shape}; bring all to one shape"
                )
    return np.stack(xs), np.stack(ys)


def _checked(x: object, y: object, what: str) -> tuple[Floats, NDArray[np.int64] | Floats]:
    inputs, labels = _array(x, f"{what}: x"), _array(y, f"{what}: y")
    if inputs.ndim == 0 or labels.ndim == 0:
        raise DataError(f"{what}: x and y must have one row an example, but one of them is a single number")
    if len(inputs) != len(labels):
        raise DataError(f"{what} has {len(inputs)} inputs but {len(labels)} labels: each example needs one of both")
    if inputs.size == 0 or labels.size == 0:
        raise DataError(f"{what} is empty (x has shape {inputs.shape}): it needs at least one example")
    x32 = _finite_float32(inputs, f"{what}: x")
    if np.issubdtype(labels.dtype, np.floating):
        y32 = _finite_float32(labels, f"{what}: y")
        return x32, y32.reshape(len(y32), -1)
    if labels.size != len(labels):
        raise DataError(
            f"{what}: class labels must have shape [{len(labels)}], not {list(labels.shape)}; "
            "give class numbers, or floating-point targets for regression"
        )
    y64 = np.ascontiguousarray(labels.reshape(-1), np.int64)
    if y64.min() < 0:
        raise DataError(f"{what}: class label {y64.min()} of example {y64.argmin()} is negative; number classes from 0")
    return x32, y64


def _array(value: object, what: str) -> NDArray[Any]:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    try:
        array: NDArray[Any] = np.asarray(value)
    except Exception as error:
        raise DataError(f"{what} cannot be read as an array of numbers: {error}") from error
    if array.dtype.kind not in "buif":
        raise DataError(f"{what} is a {type(value).__name__} of {array.dtype}; it must be an array of real numbers")
    return array


def _finite_float32(array: NDArray[Any], what: str) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):  # reported below, by its place
        floats: Floats = np.ascontiguousarray(array, np.float32)
        # A finite sum in float64 proves all finite, without a second array of N flags.
        total = floats.sum(dtype=np.float64)
    if not np.isfinite(total):
        rows = floats.reshape(len(floats), -1)
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise DataError(f"{what} of example {bad} holds NaN or a value beyond float32; clean or drop such examples")
    return floats
