"""Volumes of your own, such as brains: NIfTI files, listed in a CSV file with target and site."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArgumentError, DataError, MissingExtraError
from ..recipe import Recipe
from ..state import Floats
from . import sites
from .record import Dataset
from .tables import Table

__all__ = ["load"]

_COLUMNS = ("path", "target", "site")


def load(data_dir: Path | None = None, progress: bool = True, table: str = "volumes.csv") -> tuple[Dataset, Dataset]:
    """Return ``(train, test)``: x float32[N, 1, D, H, W], y float32[N, 1] standardised, with the sites as groups.

    Each volume has mean 0 and deviation 1, which needs nobody else's data. Errors are in the unit of ``target``. Sites
    and held-out examples: see :mod:`fedsparsify.data.sites`.

    Args:
        data_dir: folder that ``table`` is in; by default that named by ``FEDSPARSIFY_DATA``, else the current one.
        progress: not used; nothing is downloaded.
        table: a CSV file with the columns ``path`` (of a ``.nii`` or ``.nii.gz`` file, from the CSV file's folder),
            ``target`` (a number) and ``site`` (a name), and any others.

    Raises:
        ArgumentError: ``table`` is no text.
        DataError: the CSV file or a volume is missing or cannot be read, a column or cell is wrong, or a volume has
            another shape than the first or a value that is not finite.
        MissingExtraError: nibabel is not installed.
    """
    if not isinstance(table, str):
        raise ArgumentError(f"data.table = {table!r} must be the name of a CSV file")
    try:
        import nibabel
    except ImportError as error:
        raise MissingExtraError("reading NIfTI volumes", "mri") from error
    path = (data_dir or Path(os.environ.get("FEDSPARSIFY_DATA") or "").expanduser()) / table
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): name a CSV file with the columns {', '.join(_COLUMNS)} as"
            " data.table, and its folder with --data-dir"
        ) from error
    listed = Table(content, str(path), _COLUMNS)
    targets = listed.numbers(["target"])[:, 0]
    names = listed.texts("site")
    x: Floats | None = None
    seen: dict[Path, int] = {}
    for row, name in enumerate(listed.texts("path")):
        first = seen.setdefault((path.parent / name).resolve(), row)
        if first != row:  # else one volume could be trained on and tested with
            raise DataError(
                f"{listed.line(row)}: {name} is listed before, in {listed.line(first)}: drop one of the lines"
            )
        volume = _volume(nibabel, path.parent / name, listed.line(row))
        if x is None:  # all memory at once: a list of volumes would need it twice
            x = np.empty((len(listed), 1, *volume.shape), np.float32)
        if volume.shape != x.shape[2:]:
            raise DataError(
                f"{listed.line(row)}: {path.parent / name} has shape {list(volume.shape)}, but the first volume"
                f" {list(x.shape[2:])}: bring all to one shape"
            )
        x[row, 0] = volume
    assert x is not None  # a table has at least one row
    return sites.by_site(x, targets, names, str(path), Recipe("volume", x.shape[2:], each=True))


def _volume(nibabel: Any, path: Path, place: str) -> Floats:
    try:
        volume: Floats = np.asarray(nibabel.load(path).get_fdata(dtype=np.float32))
    except FileNotFoundError as error:
        raise DataError(f"{place}: there is no file {path}; correct the path or drop the line") from error
    except (
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
        gzip.BadGzipFile,
        zlib.error,
        EOFError,
        OSError,
        ValueError,
    ) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{place}: {path} is damaged or no NIfTI volume ({reason}): get it again") from error
    if volume.ndim != 3:
        raise DataError(f"{place}: {path} has shape {list(volume.shape)} instead of three dimensions: convert it")
    if not np.isfinite(volume).all():
        raise DataError(f"{place}: {path} holds NaN or infinity: clean it or drop the line")
    deviation = volume.std(dtype=np.float64)
    if deviation == 0:
        raise DataError(f"{place}: {path} has one value everywhere, so it shows nothing: drop the line")
    normal: Floats = ((volume - volume.mean(dtype=np.float64)) / deviation).astype(np.float32)
    return normal
