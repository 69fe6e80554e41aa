"""Runs a graph in NumPy where the native engine cannot: few examples at a time, and no more memory than they need."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..state import Floats
from . import reference
from .graph import Graph, Node
from .operations import check_graph

__all__ = ["NumpyNetwork", "convolution"]

_AT_ONCE = 1 << 24
"""Numbers that the largest value has at most for the examples that are computed together; one of them may have more."""


class NumpyNetwork:
    """A graph that is ready to run; threads may share it.

    Args:
        graph: the network.

    Raises:
        ArgumentError: the graph breaks a rule of its operations.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        shapes = check_graph(graph)
        self._output = shapes[-1]
        self._at_once = max(1, _AT_ONCE // max(map(math.prod, shapes)))
        self._last_reader = {i: index for index, node in enumerate(graph.nodes) for i in node.inputs}

    def run(self, x: NDArray[Any]) -> Floats:
        """Return the outputs float32[B, ...] for inputs of the graph's shape and type.

        Raises:
            ArgumentError: a word's number is beyond its table.
        """
        parts = [self._part(x[i : i + self._at_once]) for i in range(0, len(x), self._at_once)]
        return np.concatenate(parts) if parts else np.zeros((0, *self._output), np.float32)

    def _part(self, x: NDArray[Any]) -> Floats:
        values = {0: x}
        for index, node in enumerate(self._graph.nodes):
            inputs = [values[i] for i in node.inputs]
            values[index + 1] = (
                convolution(node, *inputs) if "groups" in node.attributes else reference.apply(node, *inputs)
            )
            for i in node.inputs:
                if self._last_reader[i] == index:
                    values.pop(i, None)
        return values[len(self._graph.nodes)]


def convolution(node: Node, x: Floats) -> Floats:
    """Return what a convolution in 1, 2 or 3 dimensions makes of float32[B, C, *S].

    Each place of the kernel is one matrix product with the input moved by as much, over the channels that any weight at
    that place reads; nothing is unfolded.
    """
    numbers: Any = node.attributes
    weight, groups = node.tensors["weight"], numbers["groups"]
    out, per_group, *kernel = weight.shape
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in numbers["padding"])])
    steps = list(zip(kernel, numbers["stride"], numbers["dilation"], strict=True))
    extent = [(n - d * (k - 1) - 1) // s + 1 for n, (k, s, d) in zip(x.shape[2:], steps, strict=True)]
    y = np.zeros((len(x), out, math.prod(extent)), np.float32)
    for g, place in itertools.product(range(groups), itertools.product(*map(range, kernel))):
        rows = slice(g * (out // groups), (g + 1) * (out // groups))
        index: Any = (rows, slice(None), *place)
        part = weight[index]
        read = np.flatnonzero(part.any(0))
        if read.size:
            starts = [at * d for at, (_, _, d) in zip(place, steps, strict=True)]
            window = tuple(
                slice(b, b + s * (n - 1) + 1, s) for b, n, (_, s, _) in zip(starts, extent, steps, strict=True)
            )
            moved = x[(slice(None), g * per_group + read, *window)].reshape(len(x), read.size, -1)
            y[:, rows] += part[:, read] @ moved
    if "bias" in node.tensors:
        y += node.tensors["bias"][:, None]
    return y.reshape(len(x), out, *extent)
