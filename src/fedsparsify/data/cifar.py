"""CIFAR-10 and CIFAR-100: 60,000 colour pictures of 32 x 32 pixels, in their official binary form.

Source: Krizhevsky, Learning multiple layers of features from tiny images, 2009.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..recipe import Recipe
from ..state import Floats
from . import files
from .augment import crop_and_flip
from .record import Dataset

__all__ = ["CIFAR10", "CIFAR100", "Cifar", "load", "load_cifar10", "load_cifar100"]

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Cifar:
    """One of the two data sets.

    Attributes:
        source: where its files come from.
        train: names of the training files, each with its number of records.
        test: the same of the test file.
        labels: bytes before the pixels of a record; the last one is the label that is learned.
        classes: number of classes.
        names: name of the file that lists the classes' names.
        mean: of each colour over the training pixels, as a fraction of 255.
        deviation: likewise the standard deviation.
    """

    source: files.Source
    train: Mapping[str, int]
    test: Mapping[str, int]
    labels: int
    classes: int
    names: str
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


def _source(title: str, folder: str, archive: str, md5: str, names: tuple[str, ...]) -> files.Source:
    return files.Source(
        title=title,
        folders=(folder, "."),
        # Copies with their records in another order are as good, so the content is checked instead of checksums.
        md5=dict.fromkeys(names),
        others=(f"{archive}.tar",),
        downloads={f"https://www.cs.toronto.edu/~kriz/{archive}.tar.gz": md5},
    )


_BATCHES = {f"data_batch_{i}.bin": 10_000 for i in range(1, 6)}

CIFAR10 = Cifar(
    _source(
        "CIFAR-10",
        "cifar-10-batches-bin",
        "cifar-10-binary",
        "c32a1d4ab5d03f1284b67883e8d87530",
        (*_BATCHES, "test_batch.bin", "batches.meta.txt"),
    ),
    train=_BATCHES,
    test={"test_batch.bin": 10_000},
    labels=1,
    classes=10,
    names="batches.meta.txt",
    mean=(0.4914, 0.4822, 0.4465),
    deviation=(0.2470, 0.2435, 0.2616),
)

CIFAR100 = Cifar(
    _source(
        "CIFAR-100",
        "cifar-100-binary",
        "cifar-100-binary",
        "03b5dce01913d631647c71ecec9e9cb8",
        ("train.bin", "test.bin", "fine_label_names.txt"),
    ),
    train={"train.bin": 50_000},
    test={"test.bin": 10_000},
    labels=2,  # one of 20 coarse classes, then one of 100 fine ones
    classes=100,
    names="fine_label_names.txt",
    mean=(0.5071, 0.4865, 0.4409),
    deviation=(0.2673, 0.2564, 0.2762),
)


def load_cifar10(data_dir: Path | None = None, progress: bool = True) -> tuple[Dataset, Dataset]:
    """Return ``(train, test)`` of CIFAR-10; see :func:`load`."""
    return load(CIFAR10, data_dir, progress)


def load_cifar100(data_dir: Path | None = None, progress: bool = True) -> tuple[Dataset, Dataset]:
    """Return ``(train, test)`` of CIFAR-100 with its 100 fine classes; see :func:`load`."""
    return load(CIFAR100, data_dir, progress)


def load(cifar: Cifar, data_dir: Path | None = None, progress: bool = True) -> tuple[Dataset, Dataset]:
    """Return ``(train, test)`` of 50,000 and 10,000 examples: x float32[N, 3, 32, 32], y int64[N].

    Each colour has mean 0 and deviation 1 over the training pixels. Training pictures are shifted by up to 4 pixels and
    every second one mirrored, anew in every epoch (:func:`fedsparsify.data.augment.crop_and_flip`).

    Args:
        cifar: which of the two.
        data_dir: folder to look for the files, their folder or the archive in first.
        progress: show a bar on standard error while downloading.

    Raises:
        DataError: a file is missing or damaged, or its records are not those of the data set: another number of them,
            a label out of range, or classes of unequal size.
    """
    contents = files.read(cifar.source, data_dir, progress)
    for archive in cifar.source.others:
        if archive in contents:
            contents = _unpack(contents[archive], archive, cifar.source)
    names = tuple(contents[cifar.names].decode("utf-8", "replace").split())
    if len(names) != cifar.classes:
        raise DataError(
            f"{cifar.names} names {len(names)} classes instead of {cifar.classes}: get {cifar.source.title} again"
        )
    train, test = (_dataset(cifar, contents, part, names) for part in (cifar.train, cifar.test))
    return replace(train, augment=crop_and_flip(4)), test


def _unpack(content: bytes, archive: str, source: files.Source) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as members:
            for member in members:
                name = member.name.rpartition("/")[2]
                if name in source.md5 and (file := members.extractfile(member)):
                    found[name] = file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{archive} is damaged ({error}): delete it and get {source.title} again") from error
    missing = sorted(set(source.md5) - set(found))
    if missing:
        raise DataError(f"{archive} lacks {', '.join(missing)}: delete it and get {source.title} again")
    return found


def _dataset(cifar: Cifar, contents: Mapping[str, bytes], part: Mapping[str, int], names: tuple[str, ...]) -> Dataset:
    again = f"get {cifar.source.title} again"
    size = cifar.labels + _PIXELS
    records = []
    for name, count in part.items():
        content = contents[name]
        if len(content) != count * size:
            raise DataError(
                f"{name} has {len(content)} bytes instead of {count * size}, {count} records of {size}: {again}"
            )
        found = np.frombuffer(content, np.uint8).reshape(count, size)
        wrong = np.flatnonzero(found[:, cifar.labels - 1] >= cifar.classes)
        if len(wrong):
            label = found[wrong[0], cifar.labels - 1]
            raise DataError(
                f"{name}, record {wrong[0]}: label {label} is beyond {cifar.classes - 1}, the last class: {again}"
            )
        records.append(found)
    y = np.concatenate([found[:, cifar.labels - 1] for found in records]).astype(np.int64)
    sizes = np.bincount(y, minlength=cifar.classes)
    if sizes.min() != sizes.max():
        raise DataError(
            f"{', '.join(part)}: class {sizes.argmin()} has {sizes.min()} records and class {sizes.argmax()}"
            f" {sizes.max()}, but all must have {len(y) // cifar.classes}: {again}"
        )
    x = np.empty((len(y), 3, 32, 32), np.float32)
    mean, deviation = (np.array(v, np.float32).reshape(3, 1, 1) for v in (cifar.mean, cifar.deviation))
    start = 0
    for found in records:
        rows: Floats = x[start : start + len(found)]
        np.multiply(found[:, cifar.labels :].reshape(-1, 3, 32, 32), np.float32(1 / 255), out=rows)
        rows -= mean
        rows /= deviation
        start += len(found)
    recipe = Recipe(
        "picture", (3, 32, 32), names, brightest=255, scale=1 / 255, mean=cifar.mean, deviation=cifar.deviation
    )
    return Dataset(x, y, names, recipe=recipe)
