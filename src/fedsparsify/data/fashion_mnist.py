"""FashionMNIST: 70,000 grey 28x28 pictures of ten kinds of clothing (Xiao, Rasul, Vollgraf, arXiv 1708.07747)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import DataError
from ..recipe import Recipe
from . import files
from .idx import parse_idx
from .record import Dataset

__all__ = ["CLASS_NAMES", "SOURCE", "load"]

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}

SOURCE = files.Source(
    title="FashionMNIST",
    folders=("fashion-mnist", ".", "FashionMNIST/raw"),  # the last is where torchvision keeps it
    md5=_MD5,
    system=Path("/usr/share/datasets/fashion-mnist"),
    package="dataset-fashion-mnist",
    downloads={f"{_URL}{name}.gz": None for name in _MD5},
)


def load(data_dir: Path | None = None, progress: bool = True, source: files.Source = SOURCE) -> tuple[Dataset, Dataset]:
    """Return ``(train, test)``: x float32[N, 1, 28, 28] in [0, 1], y int64[N] in 0..9.

    Args:
        data_dir: folder to look for the four files in first.
        progress: show a bar on standard error while downloading.
        source: where the files come from, and their checksums.

    Raises:
        DataError: a file is missing, damaged, or not what its name says.
    """
    contents = files.read(source, data_dir, progress)
    return _dataset(contents, "train"), _dataset(contents, "t10k")


def _dataset(contents: dict[str, bytes], part: str) -> Dataset:
    names = f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
    pixels, labels = (parse_idx(contents[name], name) for name in names)
    if pixels.shape[1:] != (28, 28):
        raise DataError(f"{names[0]} holds an array of shape {list(pixels.shape)} instead of [N, 28, 28]: get it again")
    if labels.shape != pixels.shape[:1]:
        raise DataError(f"{names[1]} has shape {list(labels.shape)} for {len(pixels)} pictures: get both files again")
    if labels.size and labels.max() >= len(CLASS_NAMES):
        raise DataError(f"{names[1]} holds label {labels.max()}, but classes go from 0 to 9: get it again")
    # Not centred: the paper's learning rates are for pixels in [0, 1], and five times too large for unit variance.
    x = np.multiply(pixels, np.float32(1 / 255), dtype=np.float32)
    recipe = Recipe("picture", (28, 28), CLASS_NAMES, brightest=255, scale=1 / 255)
    return Dataset(x[:, np.newaxis], labels.astype(np.int64), CLASS_NAMES, recipe=recipe)
