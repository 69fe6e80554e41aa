"""Digits: 1,797 grey 8x8 pictures of handwritten digits, bundled with scikit-learn (UCI, Alpaydin and Kaynak, 1998).

Small enough for tests and examples, and needs no file.
"""

from __future__ import annotations

import importlib.util
import warnings
import zlib
from pathlib import Path

import numpy as np

from ..errors import DataError, MissingExtraError
from ..recipe import Recipe
from .record import Dataset

__all__ = ["load"]

# Mean and standard deviation of the training pixels, as fractions of the largest value, 16.
_MEAN, _STD = 0.3058, 0.3762


def load(data_dir: Path | None = None, progress: bool = True) -> tuple[Dataset, Dataset]:
    """Return ``(train, test)`` of 1,437 and 360 examples: x float32[N, 1, 8, 8], y int64[N] in 0..9.

    Every fifth example of each class is for testing: the same split everywhere, without chance.

    Args:
        data_dir: not used; there is no file.
        progress: not used; nothing is downloaded.

    Raises:
        DataError: its file of digits is missing or damaged.
        MissingExtraError: scikit-learn is not installed.
    """
    # The file is read and scikit-learn not imported, which would take longer than a round of these digits.
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise MissingExtraError("the digits data set", "digits")
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an empty file
            table = np.loadtxt(path, delimiter=",").reshape(1797, 65)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"{path}, scikit-learn's digits, cannot be read ({error}): install scikit-learn again"
        ) from error
    x = ((table[:, :-1].reshape(-1, 1, 8, 8) / 16 - _MEAN) / _STD).astype(np.float32)
    y = table[:, -1].astype(np.int64)
    for_test = np.zeros(len(y), np.bool_)
    for_test[np.argsort(y, kind="stable")[::5]] = True
    names = tuple(str(digit) for digit in range(10))
    recipe = Recipe(
        *("picture", (8, 8), names),
        brightest=16,
        exact=True,
        divisor=16,
        mean=(_MEAN,),
        deviation=(_STD,),
    )
    train, test = (Dataset(x[part], y[part], names, recipe=recipe) for part in (~for_test, for_test))
    return train, test
