"""Reads the layers of a traced network that are written as calls in ``forward`` rather than as modules."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

__all__ = ["FUNCTIONS", "METHODS", "Pair", "Uncovered", "flatten_of", "is_size", "pair", "rate_of", "window_of"]

Pair = tuple[int, int]


class Uncovered(Exception):
    """The network has something that the compiled trainer does not do."""


def is_size(node: fx.Node) -> bool:
    """Whether a node only reads a tensor's shape, as ``x.view(x.size(0), -1)`` does."""
    if node.op == "call_method":
        return node.target == "size"
    return node.op == "call_function" and node.target in (getattr, operator.getitem)


def pair(value: Any) -> Pair:
    """Two whole numbers from one or two."""
    first, second = value if isinstance(value, tuple | list) else (value, value)
    if type(first) is not int or type(second) is not int:
        raise Uncovered(f"{value!r} is not a pair of whole numbers")
    return first, second


def rate_of(p: float) -> float:
    """A dropout rate below 1."""
    if not 0.0 <= p < 1.0:
        raise Uncovered(f"a dropout rate of {p} is not covered")
    return float(p)


def window_of(kernel: Any, stride: Any, padding: Any, ceil_mode: bool = False, dilation: Any = 1) -> dict[str, Any]:
    """Kernel and stride of a plain pooling."""
    if ceil_mode or pair(padding) != (0, 0) or pair(dilation) != (1, 1):
        raise Uncovered("pooling with padding, dilation or rounding up is not covered")
    return {"kernel": pair(kernel), "stride": pair(kernel if stride is None or stride == [] else stride)}


def flatten_of(start: int = 0, end: int = -1) -> dict[str, Any]:
    """Nothing, for a flatten that keeps the batch dimension alone."""
    if (start, end) != (1, -1):
        raise Uncovered("flatten must keep the batch and nothing else")
    return {}


Read = Callable[[fx.Node, fx.Node], tuple[str, dict[str, Any]]]


def _given(node: fx.Node, *names: str) -> dict[str, Any]:
    """Arguments after the tensor, by name."""
    return {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}


def _read_relu(node: fx.Node, twin: fx.Node) -> tuple[str, dict[str, Any]]:
    return "relu", {}


def _read_flatten(node: fx.Node, twin: fx.Node) -> tuple[str, dict[str, Any]]:
    given = _given(node, "start_dim", "end_dim")
    return "flatten", flatten_of(given.get("start_dim", 0), given.get("end_dim", -1))


def _read_view(node: fx.Node, twin: fx.Node) -> tuple[str, dict[str, Any]]:
    # Only (batch, -1), or (-1, features) with every feature: anything else would mix examples.
    shape = node.args[1:] if len(node.args) > 2 else tuple(node.args[1])  # type: ignore[arg-type]
    if len(shape) != 2 or not isinstance(shape[0], fx.Node) or not is_size(shape[0]) or shape[1] != -1:
        raise Uncovered(f"{node.name} is not a reshape to (batch, -1)")
    if not _reads_batch(shape[0]):
        raise Uncovered(f"{node.name} does not keep the batch")
    return "flatten", {}


def _reads_batch(node: fx.Node) -> bool:
    """Whether a node is ``x.size(0)``, ``x.size()[0]`` or ``x.shape[0]``."""
    if node.op == "call_method":
        return tuple(node.args[1:]) == (0,) or node.kwargs.get("dim") in (0,)
    source = node.args[0]
    if node.target is not operator.getitem or node.args[1] != 0 or not isinstance(source, fx.Node):
        return False
    if source.op == "call_method":
        return source.target == "size" and len(source.args) == 1
    return source.target is getattr and str(source.args[1]) == "shape"


def _read_squeeze(node: fx.Node, twin: fx.Node) -> tuple[str, dict[str, Any]]:
    if _given(node, "dim").get("dim") not in (-1, 1):
        raise Uncovered(f"{node.name} must squeeze the last dimension alone")
    return "squeeze", {}


def _read_dropout(node: fx.Node, twin: fx.Node) -> tuple[str, dict[str, Any]]:
    given, twin_given = _given(node, "p", "training"), _given(twin, "p", "training")
    if given.get("training", True) is not True or twin_given.get("training", True) is not False:
        raise Uncovered(f"{node.name} must act in training only: pass training=self.training")
    return "dropout", {"rate": rate_of(given.get("p", 0.5))}


def _read_pool(kind: str) -> Read:
    names = ("kernel_size", "stride", "padding")
    rest = ("dilation", "ceil_mode", "return_indices") if kind == "maxpool2d" else ("ceil_mode",)

    def read(node: fx.Node, twin: fx.Node) -> tuple[str, dict[str, Any]]:
        given = _given(node, *names, *rest)
        if given.pop("return_indices", False) or given.pop("divisor_override", None) is not None:
            raise Uncovered(f"{node.name} is not a plain pooling")
        given.pop("count_include_pad", None)
        settings = {"stride": None, "padding": 0, **given}
        settings["kernel"] = settings.pop("kernel_size")
        return kind, window_of(**settings)

    return read


FUNCTIONS: dict[Any, Read] = {
    F.relu: _read_relu,
    torch.relu: _read_relu,
    torch.relu_: _read_relu,
    torch.flatten: _read_flatten,
    torch.squeeze: _read_squeeze,
    torch.reshape: _read_view,
    F.dropout: _read_dropout,
    F.max_pool2d: _read_pool("maxpool2d"),
    torch.max_pool2d: _read_pool("maxpool2d"),
    F.avg_pool2d: _read_pool("avgpool2d"),
}
METHODS: dict[str, Read] = {
    "relu": _read_relu,
    "relu_": _read_relu,
    "flatten": _read_flatten,
    "view": _read_view,
    "reshape": _read_view,
    "squeeze": _read_squeeze,
}
