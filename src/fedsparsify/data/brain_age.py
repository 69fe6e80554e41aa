"""Brain age: 1,078 people of FCON1000 at 23 real sites, their age from FreeSurfer's measures of their brains.

Source of the scans: the 1000 Functional Connectomes Project (Biswal et al., Toward discovery science of human brain
function, PNAS 107, 2010).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..recipe import Recipe
from . import files, sites
from .record import Dataset
from .tables import Table

__all__ = ["SOURCE", "load"]

SOURCE = files.Source(title="FCON1000", folders=("fcon1000", "."), md5={"fcon1000.csv": None})

_NO_FEATURES = ("sub_id", "age", "site")


def load(data_dir: Path | None = None, progress: bool = True) -> tuple[Dataset, Dataset]:
    """Return ``(train, test)``: x float32[N, 219], y float32[N, 1] standardised age, with the sites as groups.

    The features are sex (0 or 1) and 218 thicknesses, volumes and areas, each with mean 0 and deviation 1 over all
    training examples. Errors are in years. Sites and held-out people: see :mod:`fedsparsify.data.sites`.

    Args:
        data_dir: folder to look for ``fcon1000.csv`` in first.
        progress: not used; there is no public address to download from.

    Raises:
        DataError: the file is missing, lacks a column, or has a cell that is no number.
    """
    content = files.read(SOURCE, data_dir, progress)["fcon1000.csv"]
    table = Table(content, "fcon1000.csv", ("age", "site"))
    names = table.texts("site")
    ages = table.numbers(["age"])[:, 0]
    columns = tuple(column for column in table.columns if column not in _NO_FEATURES)
    features = table.numbers(columns)
    groups = np.unique(names, return_inverse=True)[1].astype(np.int64)
    x, mean, deviation = sites.standardise(features, ~sites.for_test(groups, ages, SOURCE.title))
    recipe = Recipe(
        *("table", (len(columns),), (), columns),
        exact=True,
        mean=tuple(mean.tolist()),
        deviation=tuple(deviation.tolist()),
    )
    return sites.by_site(x, ages, names, SOURCE.title, recipe)
