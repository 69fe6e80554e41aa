"""Says a graph in the words of the native engine: a list of layers with fused bias, map of biases, sum and ReLU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import Graph, Node
from .operations import check_graph
from .passes import scale_and_shift

__all__ = ["Lowered", "lower"]

Layer = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Lowered:
    """A graph as the native engine takes it.

    Attributes:
        layers: one dictionary each, as ``bindings_infer.cpp`` reads them.
        input: shape of one example, (features,) or (channels, height, width).
    """

    layers: list[Layer]
    input: tuple[int, ...]


_MOST_IN_LANES = 1 << 25
"""Most numbers of all values of one example: sixteen examples' take 2 GiB."""


class _Uncovered(Exception):
    """The native engine does not do it."""


def lower(graph: Graph) -> Lowered | str:
    """Return the graph for the native engine, or in one sentence why it cannot have it.

    Raises:
        ArgumentError: the graph breaks a rule of its operations.
    """
    try:
        return _Lowering(graph).run()
    except _Uncovered as why:
        return str(why)


class _Lowering:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.shapes = check_graph(graph)
        self.readers: list[list[int]] = [[] for _ in self.shapes]
        for index, node in enumerate(graph.nodes):
            for i in node.inputs:
                self.readers[i].append(index)
        self.layers: list[Layer] = []
        self.place: dict[int, int] = {0: 0}  # of a value among the native ones
        self.flat: dict[int, bool] = {}

    def run(self) -> Lowered:
        shape = self.graph.input_shape
        if self.graph.input_dtype != "float32":
            raise _Uncovered("its input is words")
        if sum(map(math.prod, self.shapes)) > _MOST_IN_LANES:
            raise _Uncovered("its values would take too much memory for several examples at once")
        if all(self.graph.nodes[i].op == "flatten" for i in self.readers[0]):
            shape = (math.prod(shape),)
        if len(shape) not in (1, 3):
            raise _Uncovered(f"its input has {len(shape)} dimensions")
        self.flat[0] = len(shape) == 1
        for index, node in enumerate(self.graph.nodes):
            if index + 1 not in self.place:
                self.add(index, node)
        last = len(self.graph.nodes)
        if not self.flat[last]:
            self.layers.append({"kind": "flatten", "inputs": [self.place[last]]})
        elif self.place[last] != len(self.layers) or not self.layers:
            self.layers.append({"kind": "combine", "inputs": [self.place[last]]})
        return Lowered(self.layers, shape)

    def add(self, index: int, node: Node) -> None:
        """Append the layer of a node, and take the ones into it that follow and fit."""
        source = node.inputs[0]
        value = index + 1
        if node.op == "flatten" and self.flat[source]:
            self.place[value], self.flat[value] = self.place[source], True
            return
        layer = self.layer(node, source)
        layer["inputs"] = [self.place[i] for i in node.inputs]
        if node.op.startswith("conv") and (after := self.only_reader(value, "bias_map")):
            layer["map"] = self.graph.nodes[after - 1].tensors["bias"]
            self.place[value], self.flat[value], value = -1, False, after
        rectifies = layer["kind"] in ("conv", "linear", "combine") and not layer.get("rectify")
        if rectifies and (after := self.only_reader(value, "relu")):
            layer["rectify"] = 1
            self.place[value], self.flat[value], value = -1, False, after
        self.layers.append(layer)
        self.place[value] = len(self.layers)
        self.flat[value] = node.op in ("linear", "mean", "flatten") or (
            layer["kind"] == "combine" and self.flat[source]
        )

    def only_reader(self, value: int, op: str) -> int:
        """Return the value of the one node that reads this one, if it does ``op``; else 0."""
        readers = self.readers[value]
        last = len(self.graph.nodes)
        return readers[0] + 1 if value != last and len(readers) == 1 and self.graph.nodes[readers[0]].op == op else 0

    def layer(self, node: Node, source: int) -> Layer:
        numbers: Any = node.attributes
        flat = self.flat[source]
        match node.op:
            case "linear" if flat:
                weight = node.tensors["weight"]
                return {"kind": "linear", "weight": weight, "bias": node.tensors.get("bias"), "outputs": len(weight)}
            case "conv2d":
                weight = _spread(_ungrouped(node.tensors["weight"], numbers["groups"]), numbers["dilation"])
                return {
                    "kind": "conv", "weight": weight, "bias": node.tensors.get("bias"), "outputs": len(weight),
                    "kernel": weight.shape[2:], "stride": numbers["stride"], "padding": numbers["padding"],
                }  # fmt: skip
            case "maxpool" | "avgpool" if not flat and not any(numbers["padding"]):
                return {"kind": node.op, "kernel": numbers["kernel"], "stride": numbers["stride"]}
            case "batchnorm":
                scale, shift = scale_and_shift(node)
                return {"kind": "combine", "scale": scale.astype(np.float32), "shift": shift.astype(np.float32)}
            case "relu":
                return {"kind": "combine", "rectify": 1}
            case "add":
                return {"kind": "combine"}
            case "subsample" if not flat:
                return {"kind": "subsample", "stride": numbers["step"]}
            case "pad_channels" if not flat:
                channels = self.shapes[source][0] + numbers["before"] + numbers["after"]
                return {"kind": "pad_channels", "before": numbers["before"], "outputs": channels}
            case "mean" if not flat and self.only_flattened(source):
                return {"kind": "mean"}
            case "flatten":
                return {"kind": "flatten"}
        raise _Uncovered(f"it has no native {node.op} on values of shape {self.shapes[source]}")

    def only_flattened(self, source: int) -> bool:
        """Whether all that read the mean of a value flatten it, so that its single pixel need not be kept as one."""
        for index, node in enumerate(self.graph.nodes):
            if node.op == "mean" and node.inputs == (source,):
                readers = self.readers[index + 1]
                return bool(readers) and all(self.graph.nodes[i].op == "flatten" for i in readers)
        return False


def _refuse_larger(weight: NDArray[np.float32], size: int, why: str) -> None:
    """Refuse to make much more of a weight than there is: files from strangers must not take what they do not hold."""
    if size > 16 * weight.size + (1 << 20):
        raise _Uncovered(f"a convolution's {why} would make {size} numbers of {weight.size}")


def _ungrouped(weight: NDArray[np.float32], groups: int) -> NDArray[np.float32]:
    """Return the weight of a convolution in groups as one over all channels, zero outside the groups."""
    if groups == 1:
        return weight
    _refuse_larger(weight, weight.size * groups, "groups")
    out, each = weight.shape[:2]
    whole = np.zeros((out, each * groups, *weight.shape[2:]), np.float32)
    for g in range(groups):
        rows = slice(g * (out // groups), (g + 1) * (out // groups))
        whole[rows, g * each : (g + 1) * each] = weight[rows]
    return whole


def _spread(weight: NDArray[np.float32], dilation: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a dilated kernel as a larger one with zeros between."""
    if all(d == 1 for d in dilation):
        return weight
    kernel = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    _refuse_larger(weight, math.prod(weight.shape[:2]) * math.prod(kernel), "dilation")
    whole = np.zeros((*weight.shape[:2], *kernel), np.float32)
    whole[(slice(None), slice(None), *(slice(None, None, d) for d in dilation))] = weight
    return whole
