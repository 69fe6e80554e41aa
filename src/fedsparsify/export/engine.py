"""Runs a graph fast on an ordinary processor: NumPy in, NumPy out, no torch.

The graph is simplified exactly (``passes.py``), then compiled by the native extension, where surviving weights are all
that is stored and computed: a batch has its images in the lanes of the vector registers, and a single image has its
parts there. Graphs with an operation that the extension does not have, and installations without it, run in NumPy.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..sparse.native import available, require_native
from ..state import Floats
from .fallback import NumpyNetwork
from .graph import Graph
from .lowering import lower
from .operations import check_graph
from .passes import simplify

__all__ = ["Engine"]


class Engine:
    """A compiled graph; any number of threads may use it at once, each call runs on the thread that makes it.

    Args:
        graph: the network.
        backend: ``native``, ``numpy``, or ``auto`` for the first of them that can run the graph.
        target: instruction set of the native kernels; empty for the best that the processor has.

    Attributes:
        backend: the one that runs, ``native`` or ``numpy``.
        why: in one sentence why it is not ``native``, else empty.

    Raises:
        ArgumentError: the graph breaks a rule of its operations, or the backend that was asked for cannot run it.
    """

    def __init__(self, graph: Graph, *, backend: Literal["auto", "native", "numpy"] = "auto", target: str = "") -> None:
        if backend not in ("auto", "native", "numpy"):
            raise ArgumentError(f"backend = {backend!r} must be auto, native or numpy")
        self._output = check_graph(graph)[-1]
        self._shape = graph.input_shape
        self._dtype = np.dtype(graph.input_dtype)
        simple = simplify(graph)
        self.backend: Literal["native", "numpy"] = "numpy"
        self.why = "numpy was asked for"
        self._network: Any = None
        if backend == "numpy":
            self._network = NumpyNetwork(simple)
            return
        lowered = lower(simple)
        if isinstance(lowered, str):
            self.why = lowered
        elif not available():
            self.why = "the native kernels are not built"
        else:
            try:
                self._network = require_native().InferNetwork(lowered.layers, lowered.input, target)
                self.backend, self.why = "native", ""
            except (ValueError, RuntimeError, LookupError, MemoryError, OverflowError) as error:
                self.why = f"the native engine refuses it ({error})"
        if self.backend != backend == "native":
            raise ArgumentError(f"the native engine cannot run this graph: {self.why}; use backend='auto'")
        if self.backend == "numpy":
            self._network = NumpyNetwork(simple)

    def run(self, x: NDArray[Any]) -> Floats:
        """Return the network's outputs float32[B, ...] for inputs [B, *input_shape]; B may be 0.

        Raises:
            ArgumentError: the inputs are of another shape or type, or a word's number is beyond its table.
        """
        if x.dtype is not self._dtype or x.shape[1:] != self._shape or not x.flags.c_contiguous:
            x = self._converted(x)
        y: Floats = self._network.run(x)
        return y if y.shape[1:] == self._output else y.reshape(len(x), *self._output)

    def describe(self) -> str:
        """Return what was chosen for each layer, for people."""
        if self.backend == "numpy":
            return f"numpy: {self.why}"
        text: str = self._network.describe()
        return text

    def multiply_adds(self) -> int:
        """Return how many multiplications with surviving weights one example takes; 0 where NumPy does them."""
        return int(self._network.multiply_adds()) if self.backend == "native" else 0

    def _converted(self, x: NDArray[Any]) -> NDArray[Any]:
        if x.ndim == 0 or x.shape[1:] != self._shape:
            raise ArgumentError(f"an input of shape {x.shape} does not fit [B, {', '.join(map(str, self._shape))}]")
        wanted = "real numbers" if self._dtype.kind == "f" else "whole numbers"
        if x.dtype.kind not in ("fiu" if self._dtype.kind == "f" else "iu"):
            raise ArgumentError(f"an input of type {x.dtype} does not fit: the network takes {wanted}")
        return np.ascontiguousarray(x, self._dtype)
