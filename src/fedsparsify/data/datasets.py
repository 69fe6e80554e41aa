"""The data sets that can be named in a configuration, and the way to a user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import ConfigError, DataError
from ..plugins import call, check_options, nearest, resolve
from . import brain_age, digits, fashion_mnist
from .record import Dataset, as_dataset

__all__ = ["DATASETS", "Dataset", "as_dataset", "load"]


def load(
    name: str, data_dir: Path | None = None, progress: bool = True, options: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Dataset, Dataset]:
    """Return ``(train, test)`` of a data set.

    Args:
        name: a key of :data:`DATASETS`, or ``module:function`` for a user's function that returns ``(train, test)``,
            each as :func:`as_dataset` takes it; the current directory is importable.
        data_dir: folder to look for files in first; None to start with ``FEDSPARSIFY_DATA``.
        progress: show a bar on standard error while files are downloaded.
        options: keyword arguments of the loader, e.g. ``{"downsample": 2}``.

    Raises:
        ArgumentError: an option is out of its range.
        ConfigError: the name or an option is unknown, or the user's function cannot be found or fails.
        DataError: a file is missing or damaged, or what the user's function returns is no data set.
        MissingExtraError: an optional package is missing.
    """
    if name in DATASETS:
        loader = partial(DATASETS[name], data_dir, progress)
        check_options(loader, "data", name, options)
        return loader(**options)
    here = f'data.name = "{name}"'
    if ":" not in name:
        raise ConfigError(
            f"{here} is unknown{nearest(name, DATASETS)}; known are {', '.join(DATASETS)}, or name your own function "
            'as "module:function"'
        )
    function = resolve(name, "data.name")
    check_options(function, "data", name, options)
    pair = call(function, here, **options)
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
        raise DataError(f"{here} returned a {type(pair).__name__}; it must return a pair (train, test)")
    train, test = as_dataset(pair[0], f"the training set of {name}"), as_dataset(pair[1], f"the test set of {name}")
    for what, a, b in (("inputs", train.x, test.x), ("labels", train.y, test.y)):
        if a.shape[1:] != b.shape[1:] or a.dtype != b.dtype:
            raise DataError(
                f"{here}: {what} of the training set are {a.dtype} of shape {list(a.shape[1:])}, of the test set "
                f"{b.dtype} of shape {list(b.shape[1:])}; they must agree"
            )
    return train, test


DATASETS: dict[str, Callable[..., tuple[Dataset, Dataset]]] = {
    "brain-age": brain_age.load,
    "digits": digits.load,
    "fashion-mnist": fashion_mnist.load,
}
"""Loader of each named data set: (data_dir, progress, **options) -> (train, test)."""
