"""Exact simplifications of a graph: batch norm folded, dead units removed, constants folded.

All of them keep the function that a graph computes, in real arithmetic; in float32 the order of sums differs. They
compute in float64 and round once.

A unit is dead where its weights are zero: it returns the same number whatever the input is. That number, passed through
what follows, is added to whoever reads it. A convolution with zeros around its input sees it everywhere but there, so
that its new bias differs by position: ``bias_map`` adds it. What nobody reads is removed too.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import Graph, Node
from .operations import check_graph, output_extent

__all__ = ["dead_units", "fold_batchnorm", "remove_dead", "scale_and_shift", "simplify"]

Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Each channel of their output comes from the same channel of their input.
_BY_CHANNEL = {
    "relu", "leaky_relu", "sigmoid", "tanh", "maxpool", "avgpool", "mean", "batchnorm", "instancenorm", "subsample",
    "bias_map",
}  # fmt: skip


def simplify(graph: Graph) -> Graph:
    """Return the same function with batch norm folded into its neighbours and dead units removed.

    Raises:
        ArgumentError: the graph breaks a rule of its operations.
    """
    if any(map(_is_vast, graph.nodes, check_graph(graph)[1:])):
        return graph
    return remove_dead(fold_batchnorm(graph))


def _is_vast(node: Node, shape: tuple[int, ...]) -> bool:
    """Whether a convolution has so many positions and so large a kernel that looking at each pair is too much."""
    kernel = node.tensors["weight"].shape[2:] if node.op.startswith("conv") else ()
    return any(n * k > 1 << 22 for n, k in zip(shape[1:], kernel, strict=False))


def fold_batchnorm(graph: Graph) -> Graph:
    """Fold each batch norm into the layer before it, or else into the layer that alone reads it.

    Where neither is a linear layer or a convolution without groups, it stays.

    Raises:
        ArgumentError: the graph breaks a rule of its operations.
    """
    shapes = check_graph(graph)
    readers = _readers(graph)
    nodes: list[Node] = []
    place = [0]  # of each old value among the new ones
    pending: dict[int, tuple[Doubles, Doubles]] = {}  # old value -> scale and shift that its only reader has to apply
    for index, node in enumerate(graph.nodes):
        source = node.inputs[0]
        value = index + 1
        if node.op == "batchnorm":
            scale, shift = scale_and_shift(node)
            before = place[source] - 1
            if readers[source] == [index] and before >= 0 and _mixes(nodes[before], shapes[source]):
                nodes[before] = _scaled_outputs(nodes[before], scale, shift)
                place.append(place[source])
                continue
            if _absorbs(graph, shapes, readers, value):
                pending[value] = scale, shift
                place.append(place[source])
                continue
        given = pending.get(source)
        if given is not None and node.op == "flatten":
            positions = math.prod(shapes[source][1:])
            pending[value] = np.repeat(given[0], positions), np.repeat(given[1], positions)
        elif given is not None:
            scale, shift = given
            weight = node.tensors["weight"]
            scaled = weight * scale.reshape(-1, *(1 for _ in weight.shape[2:]))
            added = _with_constants(node, weight, shift, shapes[source])
            node = _with_tensors(node, {**added[0].tensors, "weight": scaled})
            nodes.append(replace(node, inputs=(place[source],)))
            nodes.extend(replace(n, inputs=(len(nodes),)) for n in added[1:])
            place.append(len(nodes))
            continue
        nodes.append(replace(node, inputs=tuple(place[i] for i in node.inputs)))
        place.append(len(nodes))
    return replace(graph, nodes=tuple(nodes))


def remove_dead(graph: Graph) -> Graph:
    """Remove units whose output is constant or read by nobody, and add the constants to whoever reads them.

    Values that are added up, padded by channels, or go into recurrent layers and groups keep all of their channels, and
    so do the network's input and output.

    Raises:
        ArgumentError: the graph breaks a rule of its operations.
    """
    shapes = check_graph(graph)
    constants = _constants(graph, shapes)
    needed = _needed(graph, shapes, constants)
    kept = [np.ones(_channels(shapes[0]), np.bool_)]
    readers = _readers(graph)
    place = [0]
    nodes: list[Node] = []
    for index, (node, wanted, shape) in enumerate(zip(graph.nodes, needed[1:], shapes[1:], strict=True)):
        source = node.inputs[0]
        have = kept[source]
        added: list[Node] = []
        if node.op == "flatten":
            kept.append(np.repeat(have, math.prod(shapes[source][1:])))
        elif node.op in _BY_CHANNEL:
            kept.append(have)
            node = _with_tensors(node, {name: _taken(tensor, have) for name, tensor in node.tensors.items()})
            before = nodes[place[source] - 1] if place[source] else node
            if node.op == before.op == "bias_map" and readers[source] == [index]:  # two maps are one
                both = before.tensors["bias"] + node.tensors["bias"]
                nodes[place[source] - 1] = _with_tensors(before, {"bias": both})
                place.append(place[source])
                continue
        elif _mixes(node, shape):
            if not wanted.any():
                wanted = np.arange(len(wanted)) == 0
            kept.append(wanted)
            folded = np.where(have | np.isnan(constants[source]), 0, constants[source])
            rows = _with_tensors(node, {name: _taken(tensor, wanted) for name, tensor in node.tensors.items()})
            node, *added = _with_constants(rows, rows.tensors["weight"], folded, shapes[source])
            node = _with_tensors(node, {**node.tensors, "weight": _taken(node.tensors["weight"], have, axis=1)})
        else:
            kept.append(np.ones(_channels(shape), np.bool_))
        nodes.append(replace(node, inputs=tuple(place[i] for i in node.inputs)))
        nodes.extend(replace(n, inputs=(len(nodes),)) for n in added)
        place.append(len(nodes))
    return replace(graph, nodes=tuple(nodes))


def dead_units(graph: Graph) -> list[int]:
    """Return for each node how many channels of its value are constant or read by nobody.

    Raises:
        ArgumentError: the graph breaks a rule of its operations.
    """
    shapes = check_graph(graph)
    constants = _constants(graph, shapes)
    needed = _needed(graph, shapes, constants)
    return [int((~wanted | ~np.isnan(x)).sum()) for wanted, x in zip(needed[1:], constants[1:], strict=True)]


def _readers(graph: Graph) -> list[list[int]]:
    """Return the nodes that read each value; the network's caller counts as node -1."""
    readers: list[list[int]] = [[] for _ in range(len(graph.nodes) + 1)]
    for index, node in enumerate(graph.nodes):
        for i in node.inputs:
            readers[i].append(index)
    readers[-1].append(-1)
    return readers


def _channels(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 1


def _taken(tensor: NDArray[np.float32], which: Bools, axis: int = 0) -> NDArray[np.float32]:
    """Return a part of a tensor, without a copy where that is all of it."""
    return tensor if which.all() else np.compress(which, tensor, axis)


def _mixes(node: Node, output: tuple[int, ...]) -> bool:
    """Whether each channel of the output is a weighted sum over all channels of the input."""
    if node.op == "linear":
        return len(output) == 1
    return node.op in ("conv1d", "conv2d", "conv3d") and node.attributes["groups"] == 1


def _with_tensors(node: Node, tensors: dict[str, Any]) -> Node:
    return replace(node, tensors={name: np.ascontiguousarray(t, np.float32) for name, t in tensors.items()})


def scale_and_shift(node: Node) -> tuple[Doubles, Doubles]:
    """Return batch norm as x * scale + shift."""
    tensors = {name: tensor.astype(np.float64) for name, tensor in node.tensors.items()}
    eps = node.attributes["eps"]
    assert isinstance(eps, float)
    scale = tensors.get("weight", np.float64(1)) / np.sqrt(tensors["running_var"] + eps)
    return scale, tensors.get("bias", np.float64(0)) - tensors["running_mean"] * scale


def _scaled_outputs(node: Node, scale: Doubles, shift: Doubles) -> Node:
    weight = node.tensors["weight"]
    bias = node.tensors.get("bias", np.zeros(len(weight), np.float32))
    scaled = weight * scale.reshape(-1, *(1 for _ in weight.shape[1:]))
    return _with_tensors(node, {**node.tensors, "weight": scaled, "bias": bias * scale + shift})


def _absorbs(graph: Graph, shapes: tuple[tuple[int, ...], ...], readers: list[list[int]], value: int) -> bool:
    """Whether a value is read by one linear layer or convolution alone, perhaps flattened first."""
    if len(readers[value]) != 1 or readers[value][0] < 0:
        return False
    reader = readers[value][0]
    node = graph.nodes[reader]
    if node.op == "flatten" and len(readers[reader + 1]) == 1 and readers[reader + 1][0] >= 0:
        reader = readers[reader + 1][0]
        return graph.nodes[reader].op == "linear" and _mixes(graph.nodes[reader], shapes[reader + 1])
    return _mixes(node, shapes[reader + 1])


def _with_constants(node: Node, weight: NDArray[np.float32], x: Doubles, shape: tuple[int, ...]) -> list[Node]:
    """Return a node, and perhaps a map of biases after it, that add what the channels x would add to its output.

    Args:
        node: a linear layer or a convolution without groups.
        weight: its weight for those channels, [out, channels, *kernel].
        x: one number a channel, the same at all positions; zeros outside, where the node pads.
        shape: of the node's input, with all channels.
    """
    if not x.any():
        return [node]
    sums = np.tensordot(weight.astype(np.float64), x, ([1], [0]))  # [out, *kernel]
    padding: Any = node.attributes.get("padding", ())
    bias = node.tensors.get("bias", np.zeros(len(weight), np.float32)).astype(np.float64)
    if not any(padding):
        return [_with_tensors(node, {**node.tensors, "bias": bias + sums.reshape(len(sums), -1).sum(1)})]
    if not sums.any():
        return [node]
    inside = sums
    numbers: Any = node.attributes
    for axis, size in enumerate(shape[1:]):
        kernel, pad = weight.shape[2 + axis], padding[axis]
        stride, dilation = numbers["stride"][axis], numbers["dilation"][axis]
        first = np.arange(output_extent(size, kernel, stride, pad, dilation)) * stride - pad
        at = first[:, None] + np.arange(kernel) * dilation  # [positions, kernel]
        # The axis of this dimension's kernel is always the first after the outputs: positions go to the end.
        inside = np.tensordot(inside, ((at >= 0) & (at < size)).astype(np.float64), ([1], [1]))
    name = f"{node.name}.map" if node.name else ""
    return [node, _with_tensors(Node("bias_map", (0,), name=name), {"bias": inside})]


def _constants(graph: Graph, shapes: tuple[tuple[int, ...], ...]) -> list[Doubles]:
    """Return the number that each channel of each value always is, NaN where it depends on input or position."""
    found: list[Doubles] = [np.broadcast_to(np.nan, _channels(shapes[0]))]
    for node, shape in zip(graph.nodes, shapes[1:], strict=True):
        x = found[node.inputs[0]]
        if node.op == "flatten":
            found.append(np.repeat(x, math.prod(shapes[node.inputs[0]][1:])))
        elif node.op == "add":
            found.append(x + found[node.inputs[1]])
        elif node.op == "pad_channels":
            before, after = node.attributes["before"], node.attributes["after"]
            assert isinstance(before, int)
            assert isinstance(after, int)
            found.append(np.pad(x, (before, after)))
        elif _mixes(node, shape):
            found.append(_constant_sums(node, x))
        elif node.op in _BY_CHANNEL:
            found.append(_constant_by_channel(node, x))
        else:
            found.append(np.broadcast_to(np.nan, _channels(shape)))
    return found


def _constant_sums(node: Node, x: Doubles) -> Doubles:
    weight = node.tensors["weight"]
    padding: Any = node.attributes.get("padding", ())
    # Beside zeros around it, a constant that is not zero is none.
    depends = np.isnan(x) | ((x != 0) & any(padding))
    kernel = tuple(range(2, weight.ndim))
    fixed = ~(weight != 0).any(kernel)[:, depends].any(1)
    found = np.full(len(weight), np.nan)
    rows = weight[fixed].sum(kernel, dtype=np.float64)
    found[fixed] = rows @ np.where(depends, 0, x) + node.tensors.get("bias", np.zeros(len(weight), np.float32))[fixed]
    return found


def _constant_by_channel(node: Node, x: Doubles) -> Doubles:
    numbers: Any = node.attributes
    match node.op:
        case "relu":
            return np.maximum(x, 0)
        case "leaky_relu":
            return np.where(x < 0, x * numbers["slope"], x)
        case "sigmoid":
            return np.asarray(1 / (1 + np.exp(-np.clip(x, -700, 700))), np.float64)
        case "tanh":
            return np.asarray(np.tanh(x), np.float64)
        case "batchnorm":
            scale, shift = scale_and_shift(node)
            return np.where(scale == 0, 0, x) * scale + shift
        case "instancenorm":
            middle = node.tensors.get("bias", np.zeros(len(x), np.float32)).astype(np.float64)
            return np.where(np.isnan(x) & (node.tensors.get("weight", 1) != 0), np.nan, middle)
        case "avgpool" if any(numbers["padding"]):
            return np.where(x == 0, x, np.nan)
        case "bias_map":
            rows = node.tensors["bias"].reshape(len(x), -1)
            return np.where((rows == rows[:, :1]).all(1), x + rows[:, 0], np.nan)
        case _:  # poolings, mean, subsample
            return x


def _needed(graph: Graph, shapes: tuple[tuple[int, ...], ...], constants: list[Doubles]) -> list[Bools]:
    """Return which channels of each value someone has to read."""
    needed = [np.zeros(_channels(shape), np.bool_) for shape in shapes]
    needed[-1][:] = True
    for node, wanted, shape, constant in reversed(
        list(zip(graph.nodes, needed[1:], shapes[1:], constants[1:], strict=True))
    ):
        source = node.inputs[0]
        if node.op == "flatten":
            needed[source] |= wanted.reshape(len(needed[source]), -1).any(1)
        elif node.op in _BY_CHANNEL:
            needed[source] |= wanted
        elif _mixes(node, shape):
            weight = _taken(node.tensors["weight"], wanted & np.isnan(constant))
            read = (weight != 0).any((0, *range(2, weight.ndim)))
            needed[source] |= read & np.isnan(constants[source])
        else:
            for i in node.inputs:
                needed[i][:] = True
    return needed
