"""What a graph computes, in NumPy as plainly as it can be said: the twin that the engine is tested against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ..errors import ArgumentError
from .graph import Graph, Node
from .operations import check_graph

__all__ = ["apply", "run"]

Values = NDArray[np.float32]
Tensors = Mapping[str, Values]


def run(graph: Graph, x: NDArray[Any]) -> Values:
    """Return the output float32[B, ...] for an input of the graph's type and shape [B, *input_shape].

    Raises:
        ArgumentError: the graph breaks a rule, the input has another shape, or a word's number is beyond its table.
    """
    check_graph(graph)
    if x.shape[1:] != graph.input_shape or x.ndim == 0:
        raise ArgumentError(f"an input of shape {x.shape} does not fit [B, {', '.join(map(str, graph.input_shape))}]")
    values: list[NDArray[Any]] = [x.astype(graph.input_dtype, copy=False)]
    for node in graph.nodes:
        values.append(apply(node, *(values[i] for i in node.inputs)))
    return values[-1]


def apply(node: Node, *inputs: NDArray[Any]) -> Values:
    """Return what one operation of a checked graph makes of its inputs."""
    return np.ascontiguousarray(_COMPUTE[node.op](node.attributes, node.tensors, *inputs), np.float32)


Attributes = Mapping[str, Any]


def _linear(a: Attributes, t: Tensors, x: Values) -> Values:
    return np.asarray(x @ t["weight"].T + t.get("bias", np.float32(0)), np.float32)


def _conv(a: Attributes, t: Tensors, x: Values) -> Values:
    weight, groups = t["weight"], a["groups"]
    out, per_group, *kernel = weight.shape
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in a["padding"])])
    extent = [d * (k - 1) + 1 for d, k in zip(a["dilation"], kernel, strict=True)]
    axes = tuple(range(2, x.ndim))
    steps = tuple(slice(None, None, s) for s in a["stride"]), tuple(slice(None, None, d) for d in a["dilation"])
    # [B, C, *positions, *kernel]
    windows = sliding_window_view(x, extent, axis=axes)[(slice(None), slice(None), *steps[0], *steps[1])]
    batch, _, *rest = windows.shape
    positions = rest[: len(kernel)]
    y = np.empty((batch, out, *positions), np.float32)
    for g in range(groups):
        rows = slice(g * (out // groups), (g + 1) * (out // groups))
        part = windows[:, g * per_group : (g + 1) * per_group]
        inner = (1, *range(2 + len(kernel), 2 + 2 * len(kernel)))
        y[:, rows] = np.moveaxis(np.tensordot(part, weight[rows], (inner, tuple(range(1, weight.ndim)))), -1, 1)
    return _shifted(y, t.get("bias"))


def _along_channels(vector: Values, x: Values) -> Values:
    return vector.reshape(-1, *(1 for _ in x.shape[2:]))


def _shifted(x: Values, bias: Values | None) -> Values:
    return x if bias is None else x + _along_channels(bias, x)


def _scaled(x: Values, weight: Values | None) -> Values:
    return x if weight is None else x * _along_channels(weight, x)


def _batchnorm(a: Attributes, t: Tensors, x: Values) -> Values:
    deviation = np.sqrt(t["running_var"] + np.float32(a["eps"]))
    y = (x - _along_channels(t["running_mean"], x)) / _along_channels(deviation, x)
    return _shifted(_scaled(y, t.get("weight")), t.get("bias"))


def _instancenorm(a: Attributes, t: Tensors, x: Values) -> Values:
    axes = tuple(range(2, x.ndim))
    centred = x - x.mean(axes, dtype=np.float64, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(axes, keepdims=True) + a["eps"])
    return _shifted(_scaled(y.astype(np.float32), t.get("weight")), t.get("bias"))


def _windows(a: Attributes, x: Values, around: float) -> Values:
    """Return the windows of a pooling, [B, C, *positions, *kernel]."""
    padding = [(0, 0), (0, 0), *((p, p) for p in a["padding"])]
    padded = np.pad(x, padding, constant_values=np.float32(around))
    windows: Values = sliding_window_view(padded, a["kernel"], axis=tuple(range(2, x.ndim)))
    return windows[(slice(None), slice(None), *(slice(None, None, s) for s in a["stride"]))]


def _maxpool(a: Attributes, t: Tensors, x: Values) -> Values:
    return np.asarray(_windows(a, x, -np.inf).max(tuple(range(x.ndim, 2 * x.ndim - 2))), np.float32)


def _avgpool(a: Attributes, t: Tensors, x: Values) -> Values:
    return np.asarray(_windows(a, x, 0).mean(tuple(range(x.ndim, 2 * x.ndim - 2)), dtype=np.float64), np.float32)


def _mean(a: Attributes, t: Tensors, x: Values) -> Values:
    return np.asarray(x.mean(tuple(range(2, x.ndim)), dtype=np.float64, keepdims=True), np.float32)


def _sigmoid(x: Values) -> Values:
    with np.errstate(over="ignore"):  # exp(-x) may be infinite, and its inverse is then 0
        return np.asarray(1 / (1 + np.exp(-x)), np.float32)


def _subsample(a: Attributes, t: Tensors, x: Values) -> Values:
    return x[(slice(None), slice(None), *(slice(None, None, s) for s in a["step"]))]


def _pad_channels(a: Attributes, t: Tensors, x: Values) -> Values:
    return np.pad(x, [(0, 0), (a["before"], a["after"]), *((0, 0) for _ in x.shape[2:])])


def _embedding(a: Attributes, t: Tensors, x: NDArray[np.int64]) -> Values:
    words = len(t["weight"])
    if x.size and (x.min() < 0 or x.max() >= words):
        raise ArgumentError(f"the input has word numbers from {x.min()} to {x.max()}, but there are {words} words")
    return t["weight"][x]


def _lstm(a: Attributes, t: Tensors, x: Values) -> Values:
    batch, steps, _ = x.shape
    directions = []
    for suffix, order in (("", 1), ("_reverse", -1))[: 1 + a["bidirectional"]]:
        given = x @ t["weight_ih" + suffix].T + t.get("bias" + suffix, np.float32(0))
        recurrent = t["weight_hh" + suffix].T
        hidden = len(recurrent)
        h, c = np.zeros((batch, hidden), np.float32), np.zeros((batch, hidden), np.float32)
        states = np.empty((batch, steps, hidden), np.float32)
        for step in range(steps)[::order]:
            i, f, g, o = np.split(given[:, step] + h @ recurrent, 4, axis=1)
            c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
            h = _sigmoid(o) * np.tanh(c)
            states[:, step] = h
        directions.append(h if a["last"] else states)
    return np.concatenate(directions, axis=-1)


_COMPUTE: dict[str, Callable[..., Values]] = {
    "linear": _linear,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "batchnorm": _batchnorm,
    "instancenorm": _instancenorm,
    "bias_map": lambda a, t, x: x + t["bias"],
    "relu": lambda a, t, x: np.maximum(x, np.float32(0)),
    "leaky_relu": lambda a, t, x: np.where(x >= 0, x, np.float32(a["slope"]) * x),
    "sigmoid": lambda a, t, x: _sigmoid(x),
    "tanh": lambda a, t, x: np.tanh(x),
    "maxpool": _maxpool,
    "avgpool": _avgpool,
    "mean": _mean,
    "flatten": lambda a, t, x: x.reshape(len(x), int(np.prod(x.shape[1:]))),
    "add": lambda a, t, x, y: x + y,
    "subsample": _subsample,
    "pad_channels": _pad_channels,
    "embedding": _embedding,
    "lstm": _lstm,
}
