"""A model that is used: raw examples in, answers out, NumPy both ways, and no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError
from ..state import Floats
from .artifact import MOST_PARAMETERS, Artifact, decode_artifact, load_artifact
from .engine import Engine

__all__ = ["Prediction", "SparseModel"]

_BATCH = 128
"""Examples at once: values between layers are as large as so many need."""

_NUMBERS = 1 << 24
"""Numbers in the inputs of so many, at most, but for one example."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of N examples.

    Attributes:
        scores: float32[N, ...], the network's outputs; of a regression in the unit of its target.
        probabilities: float32[N, classes], the softmax of the scores; None for a regression.
        names: names of the classes, empty for a regression.
    """

    scores: Floats
    probabilities: Floats | None
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def classes(self) -> NDArray[np.int64]:
        """int64[N], the class of the highest score of each example.

        Raises:
            ArgumentError: it is a regression.
        """
        if self.probabilities is None:
            raise ArgumentError("the model is a regression and has no classes: read its scores")
        return np.asarray(self.scores.argmax(axis=1), np.int64)

    @property
    def labels(self) -> list[str]:
        """The name of each example's class."""
        return [self.names[c] for c in self.classes]

    def top(self, k: int) -> list[list[tuple[str, float]]]:
        """Return the k most probable classes of each example with their probabilities, the highest first."""
        if self.probabilities is None:
            raise ArgumentError("the model is a regression and has no classes: read its scores")
        if k < 1:
            raise ArgumentError(f"k = {k} must be at least 1")
        order = np.argsort(-self.scores, axis=1, kind="stable")[:, :k]
        return [
            [(self.names[c], float(row[c])) for c in best] for best, row in zip(order, self.probabilities, strict=True)
        ]


class SparseModel:
    """A network ready to predict; any number of threads may use it at once.

    Args:
        artifact: what a file holds, see :meth:`load`.

    Attributes:
        graph: the network.
        recipe: how raw examples become its inputs, and what its outputs mean.
        provenance: where it comes from, by name.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.graph = artifact.graph
        self.recipe = artifact.recipe
        self.provenance = artifact.provenance
        self._engine = Engine(artifact.graph)

    @property
    def backend(self) -> str:
        """What computes: ``native``, the sparse kernels, or ``numpy``."""
        return self._engine.backend

    @property
    def why(self) -> str:
        """Why it is not ``native``; empty if it is."""
        return self._engine.why

    @classmethod
    def load(cls, path: str | Path, most_parameters: int = MOST_PARAMETERS) -> SparseModel:
        """Read a model from a file that ``fedsparsify export --format sparse`` has made; it is trusted in nothing.

        Raises:
            DataError: there is no such file.
            WireError: it is no such file, damaged, or larger than allowed.
        """
        return cls(load_artifact(path, most_parameters))

    @classmethod
    def from_bytes(cls, data: bytes, most_parameters: int = MOST_PARAMETERS) -> SparseModel:
        """Read a model from a file's content; see :meth:`load`.

        Raises:
            WireError: it is none, damaged, or larger than allowed.
        """
        return cls(decode_artifact(data, most_parameters))

    def __reduce__(self) -> tuple[type[SparseModel], tuple[Artifact]]:
        """Let other processes have copies: they compile the network anew."""
        return SparseModel, (Artifact(self.graph, self.recipe, self.provenance),)

    def __repr__(self) -> str:
        name = self.provenance.get("model", "a network")
        return f"SparseModel({name}: {self.graph.nonzero} of {self.graph.parameters} parameters)"

    def predict(self, examples: ArrayLike | Sequence[str]) -> Prediction:
        """Return what the model says of N raw examples, as they were before training's normalisation.

        Args:
            examples: real numbers [N, *recipe.shape], such as the pixels 0 to 255 of pictures; or N texts. What
                offers NumPy an array (``__array__``) will do, such as a tensor or a data frame.

        Raises:
            ArgumentError: they are of another shape or type, or hold a value that is not finite, or one that makes a
                score that is not.
        """
        recipe, raw = self.recipe, self._listed(examples)
        step = max(1, min(_BATCH, _NUMBERS // math.prod(self.graph.input_shape)))
        starts = range(0, max(len(raw), 1), step)
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            scores = np.concatenate([self.forward(self.prepare(raw[start : start + step])) for start in starts])
            if not recipe.labels:
                scores = scores * np.float32(recipe.target_scale) + np.float32(recipe.target_mean)
        if not np.isfinite(scores).all():
            bad = int(np.argmin(np.isfinite(scores.reshape(len(scores), -1)).all(axis=1)))
            raise ArgumentError(f"example {bad} has values so large that its scores are no numbers: clean or drop it")
        if recipe.labels:
            return Prediction(scores, _softmax(scores), recipe.labels)
        return Prediction(scores, None, ())

    def prepare(self, examples: ArrayLike | Sequence[str]) -> NDArray[Any]:
        """Return the network's inputs [N, *graph.input_shape] for N raw examples: what an ONNX file's program needs.

        Raises:
            ArgumentError: as :meth:`predict`.
        """
        ready = self.recipe.prepare(self._listed(examples), self.graph.input_shape)
        return ready.astype(self.graph.input_dtype, copy=False)

    def _listed(self, examples: Any) -> Any:
        """Return what can be counted and cut: lists and tuples as they are, what offers an array as that."""
        raw = examples
        if not isinstance(examples, list | tuple):
            try:
                raw = np.asarray(examples) if hasattr(examples, "__array__") else np.float32(0)
            except Exception as error:  # of whoever offers it
                raise ArgumentError(
                    f"the examples are a {type(examples).__name__} that is no array: {error}"
                ) from error
            if raw.ndim == 0:
                raise ArgumentError(f"the examples are a {type(examples).__name__}: they must be an array or a list")
        if not len(raw) and self.recipe.kind != "text":
            return np.zeros((0, *self.recipe.shape))
        return raw

    def forward(self, x: NDArray[Any]) -> Floats:
        """Return the network's outputs for inputs [N, *graph.input_shape] that are prepared already.

        Raises:
            ArgumentError: they are of another shape or type.
        """
        try:
            inputs = np.asarray(x)
        except ValueError as error:
            raise ArgumentError("the inputs are of several shapes: all must have the network's") from error
        return self._engine.run(inputs)


def _softmax(scores: Floats) -> Floats:
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)
