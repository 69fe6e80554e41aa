"""IMDB: 50,000 film reviews, half for training, each praise or blame.

Source: Maas et al., Learning word vectors for sentiment analysis, ACL 2011.
"""

from __future__ import annotations

import gzip
import json
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .. import text
from ..errors import ArgumentError, DataError
from ..recipe import Recipe
from . import files
from .record import Dataset

__all__ = ["CLASS_NAMES", "SOURCE", "load"]

CLASS_NAMES = ("negative", "positive")

_URL = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
SOURCE = files.Source(
    title="IMDB",
    folders=("imdb", "."),
    md5={"imdb.jsonl": None},
    others=("aclImdb", "aclImdb_v1.tar"),
    downloads={_URL: "7c2ac02c03563afcf9b574c7e56c153a"},
)

_Review = tuple[str, int, str]  # split, label, text
_FOLDERS = {
    (split, label): f"{split}/{name[:3]}" for split in ("train", "test") for label, name in enumerate(CLASS_NAMES)
}


def load(
    data_dir: Path | None = None, progress: bool = True, words: int = 200, vocabulary: int = 25_000, every: int = 1
) -> tuple[Dataset, Dataset]:
    """Return ``(train, test)``: x float32[N, words] word numbers, y int64[N], 0 for negative and 1 for positive.

    Read from ``imdb.jsonl`` (an object a review with ``split``, ``label`` and ``text``), from the official folder
    ``aclImdb``, or from the official archive, which need not be unpacked. The vocabulary is that of the training
    reviews. What a word is: :mod:`fedsparsify.text`.

    Args:
        data_dir: folder to look for the data in first.
        progress: show a bar on standard error while downloading.
        words: how many words of a review are kept, the last ones.
        vocabulary: numbers in all, padding and unknown words included.
        every: 1 for all reviews, k for every k-th of each class and split, to try things out.

    Raises:
        ArgumentError: an option is out of its range.
        DataError: the data are missing, damaged, or lack reviews of a class.
    """
    for name, value, least in (("words", words, 1), ("vocabulary", vocabulary, 3), ("every", every, 1)):
        if type(value) is not int or not least <= value <= 2**24:
            raise ArgumentError(f"data.{name} = {value!r} must be a whole number from {least} to {2**24}")
    ((name, path),) = files.locate(SOURCE, data_dir, progress).items()
    read = {"imdb.jsonl": _from_lines, "aclImdb": _from_folder, "aclImdb_v1.tar": _from_archive}[name]
    reviews: dict[tuple[str, int], list[str]] = {key: [] for key in _FOLDERS}
    for split, label, content in read(path):
        reviews[split, label].append(content)
    for (split, label), found in reviews.items():
        if not found:
            raise DataError(f"{path} has no {CLASS_NAMES[label]} review for {split}: get IMDB again")
    kept = {key: [text.words(content) for content in found[::every]] for key, found in reviews.items()}
    numbers = text.vocabulary(kept["train", 0] + kept["train", 1], vocabulary)
    recipe = Recipe("text", labels=CLASS_NAMES, words=tuple(numbers), length=words)
    train, test = (
        Dataset(
            text.encode(kept[split, 0] + kept[split, 1], numbers, words),
            np.repeat(np.arange(2), [len(kept[split, label]) for label in (0, 1)]),
            CLASS_NAMES,
            recipe=recipe,
        )
        for split in ("train", "test")
    )
    return train, test


def _from_lines(path: Path) -> Iterator[_Review]:
    opened = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opened(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                yield _review(line, f"{path}, line {number}")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged after line {number} ({error}): get it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check its permissions") from error


def _review(line: bytes, place: str) -> _Review:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place} is no JSON object ({error}): mend or drop the line") from error
    if not isinstance(entry, dict):
        raise DataError(f"{place} is no JSON object but a {type(entry).__name__}: mend or drop the line")
    split, label, content = (entry.get(key) for key in ("split", "label", "text"))
    if split not in ("train", "test"):
        raise DataError(f'{place}: split = {split!r} must be "train" or "test"')
    if type(label) is not int or label not in (0, 1):
        raise DataError(f"{place}: label = {label!r} must be 0 (negative) or 1 (positive)")
    if not isinstance(content, str):
        raise DataError(f"{place}: text is missing or no text; mend or drop the line")
    return split, label, content


def _from_folder(path: Path) -> Iterator[_Review]:
    for (split, label), folder in _FOLDERS.items():
        for file in sorted((path / folder).glob("*.txt")):
            try:
                yield split, label, file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{file} cannot be read ({error}): get IMDB again") from error


def _from_archive(path: Path) -> Iterator[_Review]:
    """Read the reviews in the order of their names, as from the folder, so that both give the same data set."""
    folders = {f"aclImdb/{folder}": key for key, folder in _FOLDERS.items()}
    found: list[tuple[str, _Review]] = []
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                if folder in folders and name.endswith(".txt") and (file := archive.extractfile(member)):
                    found.append((member.name, (*folders[folder], file.read().decode("utf-8"))))
    except (tarfile.TarError, EOFError, OSError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged or no tar archive ({error}): delete it and get IMDB again") from error
    yield from (review for _, review in sorted(found))
