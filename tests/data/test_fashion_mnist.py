"""FashionMNIST: the real files where a machine has them, and every way in which a file can be another one."""

from __future__ import annotations

import hashlib
import os
import re
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsparsify.data import Dataset, fashion_mnist, load
from fedsparsify.data.idx import parse_idx
from fedsparsify.errors import DataError

PICTURES = np.arange(3 * 28 * 28).astype(np.uint8).reshape(3, 28, 28)
LABELS = np.array([0, 9, 4], np.uint8)


def idx(array: NDArray[np.uint8], kind: int = 8) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


def _load(folder: Path, pictures: bytes, labels: bytes) -> tuple[Dataset, Dataset]:
    """Write both parts with their true checksums, so that only the content can be wrong."""
    md5 = {}
    for name in fashion_mnist.SOURCE.md5:
        content = labels if "labels" in name else pictures
        (folder / name).write_bytes(content)
        md5[name] = hashlib.md5(content).hexdigest()
    return fashion_mnist.load(folder, source=replace(fashion_mnist.SOURCE, md5=md5))


def test_pixels_are_scaled_to_one(tmp_path: Path) -> None:
    train, test = _load(tmp_path, idx(PICTURES), idx(LABELS))
    for data in (train, test):
        assert data.x.shape == (3, 1, 28, 28) and data.x.dtype == np.float32 and data.x.flags.c_contiguous
        np.testing.assert_allclose(data.x[:, 0], PICTURES / 255, atol=1e-6)
        assert data.recipe is not None and np.array_equal(data.recipe.prepare(PICTURES, (1, 28, 28)), data.x)
        assert data.y.tolist() == [0, 9, 4] and data.y.dtype == np.int64
        assert data.class_names[9] == "Ankle boot" and data.num_classes == 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with nothing"),
        (b"\x1f\x8b\x08\x00", "is no IDX file (it starts with 1f 8b 08 00)"),
        (idx(LABELS, kind=13), "type 0x0d instead of 0x08"),
        (idx(LABELS)[:7], "ends inside its IDX header (7 of 8 bytes)"),
        (idx(LABELS)[:-1], "has 2 bytes after its IDX header, which promises [3], 3 in all"),
        (idx(LABELS) + b"\0", "has 4 bytes after its IDX header"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "which promises [4294967295, 4294967295, 4294967295]"),
    ],
)
def test_a_malformed_idx_file_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"^some-file .*{re.escape(message)}"):
        parse_idx(content, "some-file")


@pytest.mark.parametrize(
    ("pictures", "labels", "message"),
    [
        (PICTURES[:, :27], LABELS, "train-images-idx3-ubyte holds an array of shape [3, 27, 28]"),
        (LABELS, LABELS, "train-images-idx3-ubyte holds an array of shape [3]"),
        (PICTURES, LABELS[:2], "train-labels-idx1-ubyte has shape [2] for 3 pictures"),
        (PICTURES, LABELS + 1, "train-labels-idx1-ubyte holds label 10"),
    ],
)
def test_arrays_of_another_shape_are_refused(
    tmp_path: Path, pictures: NDArray[np.uint8], labels: NDArray[np.uint8], message: str
) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        _load(tmp_path, idx(pictures), idx(labels))


def test_files_of_another_data_set_with_the_same_names_are_refused(tmp_path: Path) -> None:
    _load(tmp_path, idx(PICTURES), idx(LABELS))
    with pytest.raises(DataError, match="train-images-idx3-ubyte is damaged or not of FashionMNIST"):
        load("fashion-mnist", tmp_path)


@pytest.mark.skipif(
    not (Path(fashion_mnist.SOURCE.system or "").is_dir() or os.environ.get("FEDSPARSIFY_DATA")),
    reason="FashionMNIST is not installed: no Debian package dataset-fashion-mnist, and FEDSPARSIFY_DATA is not set",
)
def test_the_real_files_have_ten_even_classes_and_the_published_mean_and_deviation() -> None:
    train, test = load("fashion-mnist")
    assert train.x.shape == (60_000, 1, 28, 28) and test.x.shape == (10_000, 1, 28, 28)
    assert np.bincount(train.y).tolist() == [6_000] * 10
    assert np.bincount(test.y).tolist() == [1_000] * 10
    assert (train.x.min(), train.x.max()) == (0, 1)
    assert abs(float(train.x.mean(dtype=np.float64)) - 0.2860) < 5e-4
    assert abs(float(train.x.std(dtype=np.float64)) - 0.3530) < 5e-4
