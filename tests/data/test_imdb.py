"""IMDB: words and their numbers, the three forms of the data, and damaged ones."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsparsify import text
from fedsparsify.data import Dataset, imdb, load
from fedsparsify.errors import ArgumentError, ConfigError, DataError

REVIEWS = [
    ("train", 0, "Bad, bad film."),
    ("train", 1, "A good<br />film!"),
    ("test", 0, "bad unseen words unseen"),
    ("test", 1, "good"),
]


def lines(reviews: list[tuple[str, int, str]]) -> bytes:
    return b"".join(json.dumps({"split": s, "label": y, "text": t}).encode() + b"\n" for s, y, t in reviews)


def files() -> dict[str, bytes]:
    """The official tree, by path."""
    return {f"aclImdb/{s}/{('neg', 'pos')[y]}/{i}_7.txt": t.encode() for i, (s, y, t) in enumerate(REVIEWS)}


def check(pair: tuple[Dataset, Dataset]) -> None:
    train, test = pair
    # Most frequent first, then by alphabet: bad 2, film 3, a 4, good 5.
    assert train.x.tolist() == [[2, 2, 3], [4, 5, 3]] and train.y.tolist() == [0, 1]
    assert test.x.tolist() == [[1, 1, 1], [0, 0, 5]] and test.y.tolist() == [0, 1]
    assert test.recipe is not None
    assert np.array_equal(test.recipe.prepare(["bad unseen words unseen", "good"], (3,)), test.x)
    assert train.x.dtype == np.float32 and train.y.dtype == np.int64
    assert train.class_names == ("negative", "positive")


@pytest.mark.parametrize("form", ["lines", "compressed lines", "folder", "archive"])
def test_every_form_gives_the_same_data_set(form: str, tmp_path: Path) -> None:
    if form == "lines":
        (tmp_path / "imdb.jsonl").write_bytes(lines(REVIEWS))
    elif form == "compressed lines":
        (tmp_path / "imdb.jsonl.gz").write_bytes(gzip.compress(lines(REVIEWS)))
    elif form == "folder":
        for name, content in files().items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
    else:
        with tarfile.open(tmp_path / "aclImdb_v1.tar.gz", "w:gz") as archive:
            for name, content in {**files(), "aclImdb/train/unsup/0_0.txt": b"none"}.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    check(load("imdb", tmp_path, options={"words": 3, "vocabulary": 6}))


def test_the_vocabulary_is_cut_and_the_rest_unknown(tmp_path: Path) -> None:
    (tmp_path / "imdb.jsonl").write_bytes(lines(REVIEWS))
    train, _ = load("imdb", tmp_path, options={"words": 4, "vocabulary": 4})
    assert train.x.tolist() == [[0, 2, 2, 3], [0, 1, 1, 3]]


def test_every_second_review_of_each_class(tmp_path: Path) -> None:
    (tmp_path / "imdb.jsonl").write_bytes(lines(REVIEWS + REVIEWS + REVIEWS))
    train, test = load("imdb", tmp_path, options={"every": 2})
    assert np.bincount(train.y).tolist() == np.bincount(test.y).tolist() == [2, 2]


def test_an_empty_review_is_all_padding() -> None:
    assert text.encode([[], ["b"]], {"b": 2}, 2).tolist() == [[0, 0], [0, 2]]


@pytest.mark.parametrize("line", [b"{", b"[1]", b"\xff"])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "imdb.jsonl").write_bytes(lines(REVIEWS) + line + b"\n")
    with pytest.raises(DataError, match=r"imdb\.jsonl, line 5 is no JSON object .*mend or drop the line"):
        load("imdb", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "dev"}, 'split = \'dev\' must be "train" or "test"'),
        ({"label": 2}, "label = 2 must be 0"),
        ({"label": True}, "label = True must be 0"),
        ({"text": None}, "text is missing"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    entry = {"split": "train", "label": 0, "text": "a", **change}
    (tmp_path / "imdb.jsonl").write_bytes(lines(REVIEWS) + json.dumps(entry).encode())
    with pytest.raises(DataError, match=f"line 5: {re.escape(message)}"):
        load("imdb", tmp_path)


def test_truncated_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "imdb.jsonl.gz").write_bytes(gzip.compress(lines(REVIEWS))[:-12])
    with pytest.raises(DataError, match=r"imdb\.jsonl\.gz is damaged after line \d"):
        load("imdb", tmp_path)
    (tmp_path / "imdb.jsonl.gz").unlink()
    (tmp_path / "aclImdb_v1.tar.gz").write_bytes(gzip.compress(b"no archive")[:-3])
    with pytest.raises(DataError, match=r"aclImdb_v1\.tar\.gz is damaged or no tar archive"):
        load("imdb", tmp_path)


def test_a_class_without_reviews_is_refused(tmp_path: Path) -> None:
    (tmp_path / "imdb.jsonl").write_bytes(lines(REVIEWS[:3]))
    with pytest.raises(DataError, match=r"has no positive review for test"):
        load("imdb", tmp_path)


@pytest.mark.parametrize("option", [{"words": 0}, {"vocabulary": 2}, {"every": 0}])
def test_options_out_of_their_range_are_refused(tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=f"data.{next(iter(option))} = .* must be a whole number from"):
        load("imdb", tmp_path, options=option)


def test_an_unknown_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"data\.word is no option of imdb; did you mean words\?; it has"):
        load("imdb", options={"word": 3})


def test_names_of_the_class_folders_are_those_of_the_archive() -> None:
    assert set(imdb.SOURCE.others) == {"aclImdb", "aclImdb_v1.tar"}
