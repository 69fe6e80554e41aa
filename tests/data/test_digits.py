"""Digits: a small data set without files."""

from __future__ import annotations

import gzip
import importlib.machinery
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedsparsify.data import load
from fedsparsify.errors import DataError, MissingExtraError


def test_the_split_is_fixed_stratified_and_standardised() -> None:
    pytest.importorskip("sklearn", reason="the extra 'digits' is not installed")
    train, test = load("digits", Path("ignored"))
    assert train.x.shape == (1437, 1, 8, 8) and test.x.shape == (360, 1, 8, 8)
    assert train.x.dtype == np.float32 and train.x.flags.c_contiguous and train.y.dtype == np.int64
    counts = np.array([np.bincount(train.y), np.bincount(test.y)])
    assert np.all(np.abs(counts[1] - counts.sum(axis=0) / 5) < 1), "a fifth of each class is for testing"
    assert abs(train.x.mean()) < 1e-3 and abs(train.x.std() - 1) < 1e-3
    again, _ = load("digits")
    np.testing.assert_array_equal(again.x, train.x)


def test_no_example_is_in_both_parts() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="the extra 'digits' is not installed")
    both = np.concatenate([part.x for part in load("digits")]).reshape(1797, 64)
    original = datasets.load_digits().data
    restored = np.round((both * 0.3762 + 0.3058) * 16)
    assert sorted(map(tuple, restored.tolist())) == sorted(map(tuple, original.tolist()))


def test_scikit_learn_is_not_imported_for_them() -> None:
    pytest.importorskip("sklearn", reason="the extra 'digits' is not installed")
    program = "import sys; from fedsparsify.data import load; load('digits'); print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: None,
        lambda whole: whole[:5000],
        lambda whole: b"\x1f\x8bno",
        lambda whole: gzip.compress(b""),
        lambda whole: gzip.compress(b"1,2,3\n4,5,6\n"),
        lambda whole: gzip.compress(b"<html>"),
    ],
    ids=["missing", "cut", "no gzip", "empty", "another width", "no numbers"],
)
def test_a_damaged_file_is_named(
    damage: Callable[[bytes], bytes | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        pytest.skip("the extra 'digits' is not installed")
    whole = (Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz").read_bytes()
    copy = tmp_path / "sklearn" / "datasets" / "data" / "digits.csv.gz"
    copy.parent.mkdir(parents=True)
    if (content := damage(whole)) is not None:
        copy.write_bytes(content)
    spec = importlib.machinery.ModuleSpec("sklearn", None, origin=str(tmp_path / "sklearn" / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(DataError, match=r"digits.csv.gz, scikit-learn's digits, cannot be read .*: install"):
        load("digits")


def test_without_scikit_learn_the_pip_line_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"the digits data set needs .* pip install 'fedsparsify\[digits\]'"):
        load("digits")
