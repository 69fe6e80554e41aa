"""Volumes: AdrenalMNIST3D and NIfTI files of one's own."""

from __future__ import annotations

import builtins
import hashlib
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsparsify.data import Dataset, adrenal_3d, load
from fedsparsify.errors import ArgumentError, ConfigError, DataError, MissingExtraError

VOLUMES = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 64)).astype(np.uint8)
LABELS = np.array([[0], [1], [0]], np.uint8)


def adrenal(
    folder: Path, volumes: NDArray[Any] = VOLUMES, labels: NDArray[Any] = LABELS, cut: int = 0, downsample: int = 1
) -> tuple[Dataset, Dataset]:
    """Write a file with its true checksum, so that only the content can be wrong, and load it."""
    file = io.BytesIO()
    np.savez(file, train_images=volumes, train_labels=labels, test_images=volumes, test_labels=labels)
    content = file.getvalue()[: len(file.getvalue()) - cut]
    (name,) = adrenal_3d.SOURCE.md5
    (folder / name).write_bytes(content)
    md5 = {name: hashlib.md5(content).hexdigest()}
    return adrenal_3d.load(folder, source=replace(adrenal_3d.SOURCE, md5=md5), downsample=downsample)


def test_voxels_are_scaled_to_one_and_classes_are_groups(tmp_path: Path) -> None:
    train, test = adrenal(tmp_path)
    assert train.x.shape == (3, 1, 64, 64, 64) and train.x.dtype == np.float32
    np.testing.assert_allclose(train.x[:, 0], VOLUMES / 255, atol=1e-6)
    assert train.y.tolist() == [0, 1, 0] and test.groups is not None and test.groups.tolist() == [0, 1, 0]
    assert test.group_names == test.class_names == ("normal", "hyperplasia")


@pytest.mark.parametrize("k", [2, 16, 64])
def test_downsampling_takes_means_of_cubes(tmp_path: Path, k: int) -> None:
    train, _ = adrenal(tmp_path, downsample=k)
    s = 64 // k
    assert train.recipe is not None and np.array_equal(train.recipe.prepare(VOLUMES, (1, s, s, s)), train.x)
    assert train.x.shape == (3, 1, s, s, s)
    assert train.x[1, 0, s - 1, 0, s // 2] == pytest.approx(
        VOLUMES[1, 64 - k :, :k, s // 2 * k : (s // 2 + 1) * k].mean() / 255, rel=1e-4
    )


@pytest.mark.parametrize("k", [0, 3, 128, True])
def test_a_factor_that_does_not_divide_is_refused(tmp_path: Path, k: int) -> None:
    with pytest.raises(ArgumentError, match=r"data\.downsample = .* must be one of 1, 2, 4"):
        adrenal(tmp_path, downsample=k)


def test_damaged_volumes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train_images is float64\[3, 64, 64, 64\] instead of uint8"):
        adrenal(tmp_path, volumes=VOLUMES.astype(float))
    with pytest.raises(DataError, match=r"train_labels must hold 0 or 1 for each of 3 volumes"):
        adrenal(tmp_path, labels=LABELS + 1)
    with pytest.raises(DataError, match=r"train_labels must hold .* but is uint8\[2, 1\]"):
        adrenal(tmp_path, labels=LABELS[:2])
    with pytest.raises(DataError, match=r"adrenalmnist3d_64\.npz cannot be read .*delete it"):
        adrenal(tmp_path, cut=99)
    with pytest.raises(DataError, match=r"adrenalmnist3d_64\.npz cannot be read"):
        adrenal(tmp_path, labels=np.array([{}, {}, {}], object))


def test_another_file_of_that_name_is_refused(tmp_path: Path) -> None:
    adrenal(tmp_path)
    with pytest.raises(DataError, match=r"adrenalmnist3d_64\.npz is damaged or not of AdrenalMNIST3D"):
        load("adrenal-3d", tmp_path)


def mri(folder: Path, rows: list[str], header: str = "path,target,site") -> Path:
    (folder / "volumes.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


@pytest.fixture
def brains(tmp_path: Path) -> list[str]:
    """Twelve volumes of two sites, and their lines in the table."""
    nibabel: Any = pytest.importorskip("nibabel")
    (tmp_path / "scans").mkdir()
    rng = np.random.default_rng(1)
    rows = []
    for i in range(12):
        image = nibabel.Nifti1Image(rng.normal(100, 20, (4, 5, 3)).astype(np.float32), np.eye(4))
        name = f"scans/{i}.nii" + (".gz" if i % 2 else "")
        nibabel.save(image, tmp_path / name)
        rows.append(f"{name},{20 + i},{'B' if i == 3 else 'A'}")
    return rows


def test_volumes_are_normalised_one_by_one_and_sites_are_groups(tmp_path: Path, brains: list[str]) -> None:
    train, test = load("mri", mri(tmp_path, brains))
    assert train.x.shape == (9, 1, 4, 5, 3) and train.x.dtype == np.float32
    assert train.x.mean(axis=(1, 2, 3, 4)) == pytest.approx(np.zeros(9), abs=1e-5)
    assert train.x.std(axis=(1, 2, 3, 4)) == pytest.approx(np.ones(9), abs=1e-5)
    assert test.groups is not None and sorted(test.groups.tolist()) == [0, 0, 1] and test.group_names == ("A", "B")


def test_what_is_wrong_with_a_volume_is_told_with_its_line(tmp_path: Path, brains: list[str]) -> None:
    nibabel: Any = pytest.importorskip("nibabel")

    def save(name: str, array: NDArray[Any]) -> str:
        nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), np.eye(4)), tmp_path / name)
        return f"{name},30,A"

    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "scans" / "1.nii.gz").read_bytes()[:-30])
    (tmp_path / "cut.nii").write_bytes((tmp_path / "scans" / "0.nii").read_bytes()[:-30])
    (tmp_path / "text.nii").write_text("no volume")
    cases = {
        "absent.nii,30,A": r"there is no file .*absent\.nii; correct the path",
        "cut.nii.gz,30,A": r"cut\.nii\.gz is damaged or no NIfTI volume",
        "cut.nii,30,A": r"cut\.nii is damaged or no NIfTI volume",
        "text.nii,30,A": r"text\.nii is damaged or no NIfTI volume",
        save("other.nii", np.arange(8).reshape(2, 2, 2)): r"has shape \[2, 2, 2\], but the first volume \[4, 5, 3\]",
        save("flat.nii", np.ones((4, 5, 3))): r"flat\.nii has one value everywhere",
        save("nan.nii", np.full((4, 5, 3), np.nan)): r"nan\.nii holds NaN or infinity",
        save("four.nii", np.ones((2, 2, 2, 2))): r"four\.nii has shape \[2, 2, 2, 2\] instead of three dimensions",
        "scans/0.nii,30,A": r"scans/0\.nii is listed before, in .*volumes\.csv, line 2: drop one",
        "scans/0.nii,old,A": 'target = "old" is no finite number',
    }
    for row, message in cases.items():
        with pytest.raises(DataError, match=rf"volumes\.csv, line 14: .*{message}"):
            load("mri", mri(tmp_path, [*brains, row]))


def test_a_table_is_looked_for_where_the_environment_says(tmp_path: Path, brains: list[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("FEDSPARSIFY_DATA", str(mri(tmp_path, brains)))
    assert len(load("mri")[0]) == len(load("mri", tmp_path)[0])


def test_a_wrong_table_is_told(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    with pytest.raises(DataError, match=r"volumes\.csv cannot be read .*columns path, target, site as data\.table"):
        load("mri", tmp_path)
    with pytest.raises(DataError, match=re.escape('has no column "target", only path, age, site')):
        load("mri", mri(tmp_path, ["a,1,A"], "path,age,site"))
    with pytest.raises(ConfigError, match=r"data\.table = 3 must be a text in quotes"):
        load("mri", tmp_path, options={"table": 3})


def test_without_nibabel_the_pip_line_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any) -> Any:
        if name == "nibabel":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedsparsify\[mri\]'"):
        load("mri")
