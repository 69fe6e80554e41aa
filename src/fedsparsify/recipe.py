"""How raw examples become a network's inputs, and what its outputs mean: what a model needs outside of its training.

A loader writes it beside the data that it has normalised; an exported model carries it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import text
from .errors import ArgumentError
from .state import Floats

__all__ = ["RAW_KINDS", "RawKind", "Recipe"]

RawKind = Literal["numbers", "picture", "volume", "table", "text"]
RAW_KINDS: tuple[RawKind, ...] = ("numbers", "picture", "volume", "table", "text")
"""What raw examples can be."""


@dataclass(frozen=True)
class Recipe:
    """What is done to raw examples before a network sees them, in the order of the attributes from ``downsample`` on.

    Attributes:
        kind: what an example is to people: any numbers, a picture, a volume, a row of a table, a text.
        shape: shape of a raw example; empty for a text.
        labels: names of the classes that the outputs are scores of; empty for a regression.
        columns: names of a table's columns.
        brightest: the largest raw value of a picture, such as 255; 0 for other kinds.
        exact: whether the steps below are taken in float64 and rounded once, else each in float32.
        downsample: cubes of so many positions a side are summed; 1 for none.
        scale: what values are multiplied by.
        divisor: what they are divided by then.
        mean: what is subtracted along an example's first axis: one number for each of it, one for all, or none.
        deviation: what values are divided by then, likewise.
        each: whether each example is brought to mean 0 and deviation 1 by itself.
        words: a text's words in the order of their numbers, which start at 2.
        length: how many words of a text are kept, the last ones.
        target_mean: what an output of a regression is raised by, after it was multiplied by
        target_scale: this, to be in the unit of the target.

    >>> Recipe("picture", (2,), scale=0.5, mean=(1.0,)).prepare(np.array([[2, 4]], np.uint8), (2, 1)).tolist()
    [[[0.0], [1.0]]]
    """

    kind: RawKind = "numbers"
    shape: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    brightest: float = 0.0
    exact: bool = False
    downsample: int = 1
    scale: float = 1.0
    divisor: float = 1.0
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    each: bool = False
    words: tuple[str, ...] = ()
    length: int = 0
    target_mean: float = 0.0
    target_scale: float = 1.0

    def prepare(self, raw: NDArray[Any] | Sequence[str], input_shape: tuple[int, ...]) -> Floats:
        """Return float32[N, *input_shape] for N raw examples.

        Args:
            raw: real numbers [N, *shape], or N texts.
            input_shape: shape of the network's input.

        Raises:
            ArgumentError: they are of another shape or type, or hold a value that is not finite.
        """
        if self.kind == "text":
            return self._texts(raw)
        x = self._checked(raw)
        if math.prod(input_shape) != math.prod(self.shape) // self.downsample ** len(self.shape):
            raise ArgumentError(f"raw examples of shape {self.shape} do not make inputs of shape {input_shape}")
        kind = np.float64 if self.exact or self.each else np.float32
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            out: NDArray[Any] = x.astype(kind)  # a copy, to work in
            if self.downsample > 1 and len(out):
                out = np.stack([_summed(example, self.downsample) for example in out])
            if self.scale != 1:
                out *= kind(self.scale)
            if self.divisor != 1:
                out /= kind(self.divisor)
            along = (-1, *(1 for _ in out.shape[2:]))
            if self.mean:
                out -= np.array(self.mean, kind).reshape(along)
            if self.deviation:
                out /= np.array(self.deviation, kind).reshape(along)
            if self.each and len(out):
                out = np.stack([_standardised(example) for example in out])
            ready = out.astype(np.float32, copy=False).reshape(len(out), *input_shape)
        if not np.isfinite(ready).all():
            bad = int(np.argmin(np.isfinite(ready.reshape(len(ready), -1)).all(axis=1)))
            raise ArgumentError(f"example {bad} holds NaN, infinity or a value beyond float32: clean or drop it")
        return ready

    def _checked(self, raw: NDArray[Any] | Sequence[str]) -> NDArray[Any]:
        try:
            x = np.asarray(raw)
        except ValueError as error:
            raise ArgumentError(f"the examples are no array of numbers ({error}): bring all to one shape") from error
        if x.dtype.kind not in "buif":
            raise ArgumentError(f"the examples are an array of {x.dtype}: they must be real numbers")
        if x.shape[1:] != self.shape or x.ndim == 0:
            one = "; one example is x[np.newaxis]" if x.shape == self.shape else ""
            raise ArgumentError(
                f"the examples have shape {list(x.shape)}, but must have [N, {', '.join(map(str, self.shape))}]{one}"
            )
        return x

    def _texts(self, raw: NDArray[Any] | Sequence[str]) -> Floats:
        if isinstance(raw, str) or not all(isinstance(t, str) for t in raw):
            raise ArgumentError("the examples must be a list of texts")
        return text.encode([text.words(t) for t in raw], self._numbers, self.length)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words, start=2)}


def _summed(example: NDArray[Any], k: int) -> NDArray[Any]:
    """Return the sums of cubes of k positions a side, in the order of :mod:`fedsparsify.data.adrenal_3d`."""
    for axis in range(example.ndim):
        before = (slice(None),) * axis
        example = np.add.reduce([example[(*before, slice(i, None, k))] for i in range(k)])
    return example


def _standardised(example: NDArray[Any]) -> Floats:
    example = example.astype(np.float32)
    deviation = example.std(dtype=np.float64)
    normal = (example - example.mean(dtype=np.float64)) / (deviation if deviation > 0 else np.nan)
    return np.asarray(normal, np.float32)
