"""AdrenalMNIST3D: 1,584 shapes of adrenal glands, normal or enlarged, in volumes of 64 x 64 x 64.

Source: MedMNIST v2, Yang et al., Scientific Data 10, 2023; CC BY 4.0.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, DataError
from ..recipe import Recipe
from ..state import Floats
from . import files
from .record import Dataset

__all__ = ["CLASS_NAMES", "SOURCE", "load"]

CLASS_NAMES = ("normal", "hyperplasia")

_FILE, _SIZE = "adrenalmnist3d_64.npz", 64
SOURCE = files.Source(
    title="AdrenalMNIST3D",
    folders=("adrenal-3d", "."),
    md5={_FILE: "17721accfe9fb005146a47d33bc54b2f"},
    downloads={f"https://zenodo.org/records/10519652/files/{_FILE}": None},
)


def load(
    data_dir: Path | None = None, progress: bool = True, downsample: int = 1, source: files.Source = SOURCE
) -> tuple[Dataset, Dataset]:
    """Return ``(train, test)`` of 1,188 and 298 examples: x float32[N, 1, s, s, s] in [0, 1], y int64[N] 0 or 1.

    Three of four glands are normal, so the accuracy of each class says more than that of all: the classes are the
    groups of the test set too, and a run records the accuracy of each. The 98 examples for validation are not used.

    Args:
        data_dir: folder to look for ``adrenalmnist3d_64.npz`` in first.
        progress: show a bar on standard error while downloading.
        downsample: replace each cube of this many voxels a side by its mean; s = 64 / downsample.
        source: where the file comes from, and its checksum.

    Raises:
        ArgumentError: ``downsample`` does not divide 64.
        DataError: the file is missing, damaged, or not what its name says.
    """
    if type(downsample) is not int or downsample < 1 or _SIZE % downsample:
        raise ArgumentError(f"data.downsample = {downsample!r} must be one of 1, 2, 4, 8, 16, 32 and 64")
    content = files.read(source, data_dir, progress)[_FILE]
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            parts = {part: (arrays[f"{part}_images"], arrays[f"{part}_labels"]) for part in ("train", "test")}
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{_FILE} cannot be read ({error}): delete it and get AdrenalMNIST3D again") from error
    train, test = (_dataset(part, *arrays, downsample) for part, arrays in parts.items())
    return train, test


def _dataset(part: str, volumes: NDArray[np.uint8], labels: NDArray[np.uint8], downsample: int) -> Dataset:
    if volumes.dtype != np.uint8 or volumes.shape[1:] != (_SIZE,) * 3:
        raise DataError(
            f"{_FILE}: {part}_images is {volumes.dtype}{list(volumes.shape)} instead of uint8[N, 64, 64, 64]: get it"
            " again"
        )
    if labels.size != len(volumes) or labels.dtype != np.uint8 or labels.max(initial=0) > 1:
        raise DataError(
            f"{_FILE}: {part}_labels must hold 0 or 1 for each of {len(volumes)} volumes, but is"
            f" {labels.dtype}{list(labels.shape)} up to {labels.max(initial=0)}: get it again"
        )
    y = labels.reshape(-1).astype(np.int64)
    x = _shrink(volumes, downsample)[:, np.newaxis]
    recipe = Recipe("volume", (_SIZE,) * 3, CLASS_NAMES, downsample=downsample, divisor=255.0 * downsample**3)
    return Dataset(x, y, CLASS_NAMES, groups=y, group_names=CLASS_NAMES, recipe=recipe)


def _shrink(volumes: NDArray[np.uint8], k: int) -> Floats:
    """Return the means of cubes of k voxels a side, in [0, 1]."""
    n, s = len(volumes), _SIZE // k
    out = np.empty((n, s, s, s), np.float32)
    for volume, small in zip(volumes, out, strict=True):  # one by one, each in the processor's cache
        v = volume.astype(np.float32)
        v = np.add.reduce([v[i::k] for i in range(k)])
        v = np.add.reduce([v[:, i::k] for i in range(k)])
        small[:] = np.add.reduce([v[:, :, i::k] for i in range(k)])
    out /= np.float32(255 * k**3)
    return out
