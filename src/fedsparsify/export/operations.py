"""What each operation of a graph takes and returns: the rules that every graph must keep, checked by shapes alone.

Nothing here computes a value or allocates one, so graphs from strangers are checked by it before anything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..errors import ArgumentError
from .graph import Graph, Node

__all__ = [
    "MOST_ELEMENTS",
    "MOST_NODES",
    "MOST_WINDOW",
    "OPERATIONS",
    "Rule",
    "check_graph",
    "output_extent",
    "shapes_of",
]

MOST_NODES = 4096
"""Most operations of a graph."""

MOST_ELEMENTS = 1 << 27
"""Most numbers of all values together for one example, and of one tensor: 512 MiB in float32."""

MOST_WINDOW = 1 << 20
"""Largest whole number among attributes: of a kernel, stride, padding, dilation, of groups and of added channels."""

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Rule:
    """What an operation needs.

    Attributes:
        inputs: how many values it reads.
        attributes: name -> range: ``positive``, ``natural`` (from 0), ``flag`` (0 or 1) of one whole number; the same
            with ``s`` for one a spatial dimension; ``number`` for a finite float.
        tensors: names that must be there.
        optional: names that may be.
        shape: (node, shapes of its inputs, shapes of its tensors) -> shape of its value; raises ArgumentError.
    """

    inputs: int
    attributes: Mapping[str, str]
    tensors: tuple[str, ...]
    optional: tuple[str, ...]
    shape: Callable[[Node, tuple[Shape, ...], Shapes], Shape]


def check_graph(graph: Graph) -> tuple[Shape, ...]:
    """Check a graph and return the shape of every value for one example, the input's first.

    Raises:
        ArgumentError: naming the node and what is wrong with it.
    """
    return shapes_of(
        graph.input_shape,
        graph.input_dtype,
        graph.nodes,
        [{name: tensor.shape for name, tensor in node.tensors.items()} for node in graph.nodes],
    )


def shapes_of(
    input_shape: Shape, input_dtype: str, nodes: tuple[Node, ...], tensors: list[dict[str, Shape]]
) -> tuple[Shape, ...]:
    """Do what :func:`check_graph` does, for nodes whose tensors are known by their shapes only.

    Args:
        input_shape: shape of one example.
        input_dtype: ``float32`` or ``int64``.
        nodes: the operations; their own tensors are not looked at.
        tensors: the shapes of each node's tensors by name.

    Raises:
        ArgumentError: naming the node and what is wrong with it.
    """
    if input_dtype not in ("float32", "int64"):
        raise ArgumentError(f"the input's type {input_dtype!r} is neither float32 nor int64")
    _check_size(input_shape, "the input")
    if not 1 <= len(nodes) <= MOST_NODES:
        raise ArgumentError(f"{len(nodes)} nodes are not from 1 to {MOST_NODES}")
    shapes, total = [input_shape], math.prod(input_shape)
    for index, (node, own) in enumerate(zip(nodes, tensors, strict=True)):
        where = f"node {index} ({node.op[:32]}{f' {node.name[:64]}' if node.name else ''})"
        rule = OPERATIONS.get(node.op)
        if rule is None:
            raise ArgumentError(f"{where}: the operation is unknown; known are {', '.join(OPERATIONS)}")
        if len(node.inputs) != rule.inputs or not all(0 <= i <= index for i in node.inputs):
            raise ArgumentError(
                f"{where}: its inputs {node.inputs[:8]} must be {rule.inputs} of the values 0 to {index} before it"
            )
        if node.op != "embedding" and input_dtype == "int64" and 0 in node.inputs:
            raise ArgumentError(f"{where}: the input is whole numbers, which only an embedding takes")
        if node.op == "embedding" and (input_dtype != "int64" or node.inputs != (0,)):
            raise ArgumentError(f"{where}: an embedding takes the network's input, and that must be int64")
        missing = [name for name in rule.tensors if name not in own]
        if missing or not set(own) <= {*rule.tensors, *rule.optional}:
            raise ArgumentError(
                f"{where}: its tensors are {sorted(own)[:12]}, but must be {list(rule.tensors)} and may be"
                f" {list(rule.optional)}"
            )
        for name, shape in own.items():
            _check_size(shape, f"{where}: {name}")
        try:
            _check_attributes(node, rule)
            shape = rule.shape(node, tuple(shapes[i] for i in node.inputs), own)
        except ArgumentError as error:
            raise ArgumentError(f"{where}: {error}") from None
        _check_size(shape, f"{where}: its value")
        shapes.append(shape)
        total += math.prod(shape)
        if total > MOST_ELEMENTS:
            raise ArgumentError(f"{where}: all values up to it are more than {MOST_ELEMENTS} numbers")
    return tuple(shapes)


def output_extent(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """Return how many positions a window takes along one dimension.

    >>> output_extent(28, kernel=3, stride=2, padding=1)
    14
    """
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _check_size(shape: Shape, what: str) -> None:
    if len(shape) > 8 or any(size < 1 for size in shape):
        raise ArgumentError(f"{what} has shape {shape[:9]}, which must be at most 8 positive sizes")
    if math.prod(shape) > MOST_ELEMENTS:
        raise ArgumentError(f"{what} has shape {shape}, more than {MOST_ELEMENTS} numbers")


def _check_attributes(node: Node, rule: Rule) -> None:
    if set(node.attributes) != set(rule.attributes):
        raise ArgumentError(f"its attributes are {sorted(node.attributes)[:12]}, but must be {sorted(rule.attributes)}")
    for name, kind in rule.attributes.items():
        value = node.attributes[name]
        if kind == "number":
            if isinstance(value, tuple | bool) or not math.isfinite(value):
                raise ArgumentError(f"{name} = {value!r} must be a finite number")
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        least, most = {"positive": (1, MOST_WINDOW), "natural": (0, MOST_WINDOW), "flag": (0, 1)}[
            kind.removesuffix("s")
        ]
        many = kind.endswith("s")
        if many != isinstance(value, tuple) or not all(type(v) is int and least <= v <= most for v in numbers):
            raise ArgumentError(
                f"{name} = {value!r} must be {'a whole number a dimension' if many else 'a whole number'} from {least}"
                f" to {most}"
            )


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ArgumentError(message)


def _per_channel(channels: int, tensors: Shapes, names: tuple[str, ...]) -> None:
    for name in names:
        if name in tensors:
            _need(tensors[name] == (channels,), f"{name} has shape {tensors[name]} where {(channels,)} is needed")


def _linear(node: Node, inputs: tuple[Shape, ...], tensors: Shapes) -> Shape:
    (x,), weight = inputs, tensors["weight"]
    _need(
        len(weight) == 2 and len(x) > 0 and weight[1] == x[-1],
        f"weight {weight} does not take values of shape {x}",
    )
    _per_channel(weight[0], tensors, ("bias",))
    return (*x[:-1], weight[0])


def _conv(dimensions: int) -> Callable[[Node, tuple[Shape, ...], Shapes], Shape]:
    def shape(node: Node, inputs: tuple[Shape, ...], tensors: Shapes) -> Shape:
        (x,), weight, groups = inputs, tensors["weight"], _whole(node, "groups")
        _need(
            len(x) == dimensions + 1 and len(weight) == dimensions + 2,
            f"weight {weight} does not take values of shape {x}",
        )
        _need(
            x[0] == weight[1] * groups and weight[0] % groups == 0,
            f"weight {weight} in {groups} groups does not take {x[0]} channels",
        )
        _per_channel(weight[0], tensors, ("bias",))
        return (weight[0], *_window(node, x, weight[2:], _sizes(node, "dilation")))

    return shape


def _pool(node: Node, inputs: tuple[Shape, ...], tensors: Shapes) -> Shape:
    (x,), kernel = inputs, _sizes(node, "kernel")
    padding = _sizes(node, "padding")
    _need(len(x) == len(kernel) + 1, f"a kernel of shape {kernel} does not take values of shape {x}")
    _need(
        len(padding) == len(kernel) and all(2 * p <= k for p, k in zip(padding, kernel, strict=True)),
        f"padding {padding} is more than half of kernel {kernel}",
    )
    return (x[0], *_window(node, x, kernel, (1,) * len(kernel)))


def _window(node: Node, x: Shape, kernel: Shape, dilation: Shape) -> Shape:
    size = x[1:]
    stride, padding = _sizes(node, "stride"), _sizes(node, "padding")
    _need(
        len(stride) == len(padding) == len(dilation) == len(kernel),
        f"stride {stride}, padding {padding} and dilation {dilation} must have {len(kernel)} numbers each",
    )
    _check_size((x[0], *(n + 2 * p for n, p in zip(size, padding, strict=True))), "what it reads, with its padding,")
    out = tuple(map(output_extent, size, kernel, stride, padding, dilation))
    _need(all(n >= 1 for n in out), f"a kernel of shape {kernel} does not fit positions {size}")
    return out


def _batchnorm(node: Node, inputs: tuple[Shape, ...], tensors: Shapes) -> Shape:
    (x,) = inputs
    _need(len(x) > 0, "it takes channels")
    _per_channel(x[0], tensors, ("weight", "bias", "running_mean", "running_var"))
    _positive_eps(node)
    return x


def _instancenorm(node: Node, inputs: tuple[Shape, ...], tensors: Shapes) -> Shape:
    (x,) = inputs
    _need(len(x) > 1, f"it takes channels and positions, not {x}")
    _per_channel(x[0], tensors, ("weight", "bias"))
    _positive_eps(node)
    return x


def _positive_eps(node: Node) -> None:
    eps = node.attributes["eps"]
    _need(isinstance(eps, float) and 1e-12 <= eps <= 1, f"eps = {eps!r} must be from 1e-12 to 1")


def _same(node: Node, inputs: tuple[Shape, ...], tensors: Shapes) -> Shape:
    return inputs[0]


def _bias_map(node: Node, inputs: tuple[Shape, ...], tensors: Shapes) -> Shape:
    (x,) = inputs
    _need(tensors["bias"] == x, f"bias has shape {tensors['bias']} where {x} is needed")
    return x


def _mean(node: Node, inputs: tuple[Shape, ...], tensors: Shapes) -> Shape:
    (x,) = inputs
    _need(len(x) > 1, f"it takes channels and positions, not {x}")
    return (x[0], *(1 for _ in x[1:]))


def _flatten(node: Node, inputs: tuple[Shape, ...], tensors: Shapes) -> Shape:
    return (math.prod(inputs[0]),)


def _add(node: Node, inputs: tuple[Shape, ...], tensors: Shapes) -> Shape:
    _need(inputs[0] == inputs[1], f"values of shapes {inputs[0]} and {inputs[1]} cannot be added")
    return inputs[0]


def _subsample(node: Node, inputs: tuple[Shape, ...], tensors: Shapes) -> Shape:
    (x,), step = inputs, _sizes(node, "step")
    _need(len(x) == len(step) + 1, f"steps {step} do not take values of shape {x}")
    return (x[0], *(-(-n // s) for n, s in zip(x[1:], step, strict=True)))


def _pad_channels(node: Node, inputs: tuple[Shape, ...], tensors: Shapes) -> Shape:
    (x,) = inputs
    _need(len(x) > 0, "it takes channels")
    return (x[0] + _whole(node, "before") + _whole(node, "after"), *x[1:])


def _embedding(node: Node, inputs: tuple[Shape, ...], tensors: Shapes) -> Shape:
    (x,), weight = inputs, tensors["weight"]
    _need(len(weight) == 2 and len(x) == 1, f"weight {weight} does not take numbers of shape {x}")
    return (x[0], weight[1])


def _lstm(node: Node, inputs: tuple[Shape, ...], tensors: Shapes) -> Shape:
    (x,) = inputs
    _need(len(x) == 2, f"it takes steps and features, not {x}")
    both = node.attributes["bidirectional"] == 1
    hidden = tensors["weight_hh"][-1] if tensors["weight_hh"] else 0
    for suffix in ("", "_reverse") if both else ("",):
        expected = {"weight_ih": (4 * hidden, x[1]), "weight_hh": (4 * hidden, hidden), "bias": (4 * hidden,)}
        for name, shape in expected.items():
            found = tensors.get(name + suffix)
            _need(
                found == shape or (found is None and name == "bias"),
                f"{name + suffix} has shape {found} where {shape} is needed",
            )
    if not both:
        _need(not any(name.endswith("_reverse") for name in tensors), "it has tensors of a direction that it has not")
    width = hidden * (2 if both else 1)
    return (width,) if node.attributes["last"] == 1 else (x[0], width)


def _whole(node: Node, name: str) -> int:
    value = node.attributes[name]
    assert isinstance(value, int)
    return value


def _sizes(node: Node, name: str) -> Shape:
    value = node.attributes[name]
    assert isinstance(value, tuple)
    return value


_PER_CHANNEL = ("weight", "bias")
_CONV = {"stride": "positives", "padding": "naturals", "dilation": "positives", "groups": "positive"}
_POOL = {"kernel": "positives", "stride": "positives", "padding": "naturals"}
_BACKWARD = ("weight_ih_reverse", "weight_hh_reverse", "bias_reverse")

OPERATIONS: Mapping[str, Rule] = {
    "linear": Rule(1, {}, ("weight",), ("bias",), _linear),
    "conv1d": Rule(1, _CONV, ("weight",), ("bias",), _conv(1)),
    "conv2d": Rule(1, _CONV, ("weight",), ("bias",), _conv(2)),
    "conv3d": Rule(1, _CONV, ("weight",), ("bias",), _conv(3)),
    "batchnorm": Rule(1, {"eps": "number"}, ("running_mean", "running_var"), _PER_CHANNEL, _batchnorm),
    "instancenorm": Rule(1, {"eps": "number"}, (), _PER_CHANNEL, _instancenorm),
    "bias_map": Rule(1, {}, ("bias",), (), _bias_map),
    "relu": Rule(1, {}, (), (), _same),
    "leaky_relu": Rule(1, {"slope": "number"}, (), (), _same),
    "sigmoid": Rule(1, {}, (), (), _same),
    "tanh": Rule(1, {}, (), (), _same),
    "maxpool": Rule(1, _POOL, (), (), _pool),
    "avgpool": Rule(1, _POOL, (), (), _pool),
    "mean": Rule(1, {}, (), (), _mean),
    "flatten": Rule(1, {}, (), (), _flatten),
    "add": Rule(2, {}, (), (), _add),
    "subsample": Rule(1, {"step": "positives"}, (), (), _subsample),
    "pad_channels": Rule(1, {"before": "natural", "after": "natural"}, (), (), _pad_channels),
    "embedding": Rule(1, {}, ("weight",), (), _embedding),
    "lstm": Rule(1, {"bidirectional": "flag", "last": "flag"}, ("weight_ih", "weight_hh"), ("bias", *_BACKWARD), _lstm),
}
"""Every operation by name; ``graph.py`` says what they compute."""
