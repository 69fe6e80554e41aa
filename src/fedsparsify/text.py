"""Words: how a text is cut into them, and how they become numbers."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .state import Floats

__all__ = ["PADDING", "UNKNOWN", "encode", "vocabulary", "words"]

PADDING, UNKNOWN = 0, 1

# Letters and digits of any script; an apostrophe belongs to the word that it stands in.
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


def words(text: str) -> list[str]:
    """Cut a text into lower-case words.

    A word is a run of letters and digits, with the apostrophes inside it; line breaks of HTML and all punctuation
    separate words and are dropped.

    >>> words("It's GREAT,<br /><br />10/10: a must-see!")
    ["it's", 'great', '10', '10', 'a', 'must', 'see']
    """
    return _WORD.findall(_BREAK.sub(" ", text).lower().replace("\u2019", "'"))


def vocabulary(texts: Iterable[Sequence[str]], size: int) -> dict[str, int]:
    """Number the most frequent words from 2 on, most frequent first, those of one frequency by alphabet.

    Args:
        texts: the training texts' words; words of other texts must not be counted.
        size: numbers in all, 0 for padding and 1 for all other words included.

    >>> vocabulary([["b", "a"], ["c", "a"]], 4)
    {'a': 2, 'b': 3}
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return {word: number for number, word in enumerate(ranked[: size - 2], start=2)}


def encode(texts: Sequence[Sequence[str]], numbers: Mapping[str, int], length: int) -> Floats:
    """Return float32[N, length]: the numbers of each text's last words, with padding before a shorter text.

    The end is kept because it holds a review's verdict, and padding stands in front so that a recurrent network's last
    steps read words. Numbers below 2^24 are exact in float32, the type of all inputs.

    >>> encode([["a", "b", "x"], ["b"]], {"a": 2, "b": 3}, 2).tolist()
    [[3.0, 1.0], [0.0, 3.0]]
    """
    encoded = np.full((len(texts), length), PADDING, np.float32)
    for row, text in zip(encoded, texts, strict=True):
        kept = text[-length:]
        if kept:
            row[-len(kept) :] = list(map(numbers.get, kept, itertools.repeat(UNKNOWN)))
    return encoded
