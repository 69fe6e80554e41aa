"""CIFAR-10 and CIFAR-100: files as the official ones, but with few distinct pixels, and damaged ones."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fedsparsify.data import load
from fedsparsify.data.cifar import CIFAR10, CIFAR100, Cifar
from fedsparsify.errors import DataError


def contents(of: Cifar) -> dict[str, bytes]:
    """Every file of a data set: labels in turn, the pixels of a record all its number."""
    made = {of.names: "\n".join(f"class{i}" for i in range(of.classes)).encode() + b"\n\n"}
    for name, count in (of.train | of.test).items():  # type: ignore[operator]
        records = np.zeros((count, of.labels + 3072), np.uint8)
        records[:, 0] = 7
        records[:, of.labels - 1] = np.arange(count) % of.classes
        records[:, of.labels :] = (np.arange(count) % 256)[:, np.newaxis]
        made[name] = records.tobytes()
    return made


def write(folder: Path, made: dict[str, bytes]) -> Path:
    for name, content in made.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("of", [CIFAR10, CIFAR100], ids=["cifar-10", "cifar-100"])
def test_labels_are_read_and_colours_normalised(of: Cifar, tmp_path: Path) -> None:
    name = of.source.title.lower()
    train, test = load(name, write(tmp_path, contents(of)))
    assert train.x.shape == (50_000, 3, 32, 32) and test.x.shape == (10_000, 3, 32, 32)
    assert train.y[:3].tolist() == [0, 1, 2] and train.y.max() == of.classes - 1 == test.y.max()
    assert train.class_names[-1] == f"class{of.classes - 1}"
    expected = (100 / 255 - np.array(of.mean)) / np.array(of.deviation)
    assert test.x[100, :, 5, 6] == pytest.approx(expected, rel=1e-4)
    raw = np.broadcast_to(np.uint8(100), (1, 3, 32, 32))
    assert test.recipe is not None and np.array_equal(test.recipe.prepare(raw, (3, 32, 32)), test.x[100:101])
    assert train.augment is not None and test.augment is None


def test_the_archive_need_not_be_unpacked(tmp_path: Path) -> None:
    made = contents(CIFAR10)
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz", compresslevel=1) as archive:
        for name, content in made.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert len(load("cifar-10", tmp_path)[0]) == 50_000
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin"))
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar lacks batches\.meta\.txt, data_batch_1\.bin"):
        load("cifar-10", tmp_path)


def test_damage_is_named(tmp_path: Path) -> None:
    made = contents(CIFAR10)
    write(tmp_path, made)
    batch = made["data_batch_2.bin"]

    def refused(content: bytes, message: str, name: str = "data_batch_2.bin") -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{message}.*get CIFAR-10 again"):
            load("cifar-10", tmp_path)
        (tmp_path / name).write_bytes(made[name])

    refused(batch[:-1], r"data_batch_2\.bin has 30729999 bytes instead of 30730000, 10000 records of 3073")
    refused(batch[:3073] + b"\x0a" + batch[3074:], r"data_batch_2\.bin, record 1: label 10 is beyond 9")
    refused(
        b"\x01" + batch[1:], r"data_batch_1\.bin, .*: class 0 has 4999 records and class 1 5001, but all must have 5000"
    )
    refused(b"cat\ndog\n", r"batches\.meta\.txt names 2 classes instead of 10", CIFAR10.names)


@pytest.mark.parametrize("of", [CIFAR10, CIFAR100], ids=["cifar-10", "cifar-100"])
def test_a_download_is_one_archive_with_a_checksum(of: Cifar) -> None:
    ((url, md5),) = of.source.downloads.items()
    assert url.endswith(of.source.others[0] + ".gz") and md5 is not None and len(md5) == 32
