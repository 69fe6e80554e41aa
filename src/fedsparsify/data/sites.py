"""Real sites: which of their examples are held out for testing, and how targets and features are standardised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..recipe import Recipe
from ..state import Floats
from .record import Dataset

__all__ = ["FEWEST", "TEST_EVERY", "by_site", "for_test", "standardise"]

FEWEST = 10
"""A site with fewer examples takes no part in training: it is tested on as a whole, as a site never seen."""

TEST_EVERY = 5
"""Of every other site, every fifth example in the order of the target is held out for testing."""


def for_test(sites: NDArray[np.int64], y: NDArray[np.float64], title: str) -> NDArray[np.bool_]:
    """Return bool[N], which examples are held out: the same everywhere, without chance, and alike in target and site.

    Args:
        sites: int[N] site of each example.
        y: float[N] target of each example; of equal ones the first comes first.
        title: the data set's name, for messages.

    Raises:
        DataError: no site has :data:`FEWEST` examples.

    >>> for_test(np.array([0] * 10 + [1]), np.arange(11.0), "ages").nonzero()[0].tolist()
    [2, 7, 10]
    """
    held_out = np.zeros(len(y), np.bool_)
    for site in np.unique(sites):
        members = np.flatnonzero(sites == site)
        if len(members) < FEWEST:
            held_out[members] = True
        else:
            # The middle one of each five, so that held-out targets are neither the lower nor the higher ones.
            held_out[members[np.argsort(y[members], kind="stable")][TEST_EVERY // 2 :: TEST_EVERY]] = True
    if held_out.all():
        raise DataError(f"{title}: no site has {FEWEST} examples, so there is nothing to train on: add examples")
    return held_out


def standardise(
    values: NDArray[np.float64], training: NDArray[np.bool_]
) -> tuple[Floats, NDArray[np.float64], NDArray[np.float64]]:
    """Return columns with mean 0 and standard deviation 1 over the training examples, and what was done to them.

    The sites can compute this together without showing an example: each sends how many it has, and the sums of the
    values and of their squares. A column that is constant over the training examples becomes 0 there.

    Args:
        values: float64[N, d].
        training: bool[N], which examples are trained on.

    Returns:
        float32[N, d]; the means and the deviations before, float64[d].
    """
    mean = values[training].mean(axis=0)
    deviation = values[training].std(axis=0)
    deviation[deviation == 0] = 1.0
    return ((values - mean) / deviation).astype(np.float32), mean, deviation


def by_site(
    x: Floats, y: NDArray[np.float64], sites: Sequence[str], title: str, recipe: Recipe
) -> tuple[Dataset, Dataset]:
    """Return ``(train, test)`` of a regression over sites, each site a group, the target standardised.

    Args:
        x: float32[N, ...], ready for the network.
        y: float64[N] targets, in the unit that errors are to be reported in.
        sites: name of each example's site.
        title: the data set's name, for messages.
        recipe: how ``x`` was made; that of ``y`` is added to it.

    Raises:
        DataError: no site has :data:`FEWEST` examples.
    """
    names, groups = np.unique(np.asarray(sites), return_inverse=True)
    groups = groups.astype(np.int64)
    test = for_test(groups, y, title)
    targets, mean, deviation = standardise(y[:, np.newaxis], ~test)
    everything = Dataset(
        *(x, targets),
        groups=groups,
        group_names=tuple(map(str, names)),
        y_scale=float(deviation[0]),
        recipe=replace(recipe, target_mean=float(mean[0]), target_scale=float(deviation[0])),
    )
    return everything.take(np.flatnonzero(~test)), everything.take(np.flatnonzero(test))
