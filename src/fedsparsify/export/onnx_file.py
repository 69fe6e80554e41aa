"""The model as an ONNX file, for ONNX Runtime and everything else that reads that format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, MissingExtraError
from ..version import __version__
from .graph import Graph, Node
from .operations import check_graph
from .passes import simplify

__all__ = ["OPSET", "encode_onnx"]

OPSET = 13
"""Version of the operations: of 2020, which every runtime of today knows."""

_IR_VERSION = 8


def encode_onnx(graph: Graph, compact: bool = False) -> bytes:
    """Return a checked ONNX model with one input ``input`` and one output ``output``, for any number of examples.

    Args:
        graph: the network.
        compact: remove units that do nothing, so that dense programs gain too; the outputs are the same up to rounding.

    Raises:
        MissingExtraError: onnx is not installed.
        ArgumentError: the graph breaks a rule, or is larger than an ONNX file may be.
    """
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError as error:
        raise MissingExtraError("ONNX files", "export") from error
    if compact:
        graph = simplify(graph)
    shapes = check_graph(graph)
    if 4 * graph.parameters > 1 << 31:
        raise ArgumentError(f"the network has {graph.parameters} parameters, but an ONNX file holds at most 2 GiB")
    writer = _Writer()
    for index, node in enumerate(graph.nodes):
        inputs = ["input" if i == 0 else f"v{i}" for i in node.inputs]
        writer.prefix = f"{index}.{node.name}" if node.name else str(index)
        output = "output" if index == len(graph.nodes) - 1 else f"v{index + 1}"
        _WRITE.get(node.op, _named)(writer, node, inputs, output, shapes[node.inputs[0]])
    element = TensorProto.INT64 if graph.input_dtype == "int64" else TensorProto.FLOAT
    model = helper.make_model(
        helper.make_graph(
            writer.nodes,
            "fedsparsify",
            [helper.make_tensor_value_info("input", element, ["batch", *graph.input_shape])],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", *shapes[-1]])],
            writer.constants,
        ),
        producer_name="fedsparsify",
        producer_version=__version__,
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


class _Writer:
    """Collects ONNX nodes and constants under names of their own."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.prefix = ""

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Keep an array, and return its name."""
        from onnx import numpy_helper

        full = f"{self.prefix}.{name}"
        self.constants.append(numpy_helper.from_array(np.array(values, order="C"), full))
        return full

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node of one output, and return the output's name."""
        from onnx import helper

        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"{op} {output}", **attributes))
        return output

    def between(self, name: str) -> str:
        """Return a name for a value within one of our nodes."""
        return f"{self.prefix}.{name}"


def _linear(w: _Writer, node: Node, inputs: list[str], output: str, shape: tuple[int, ...]) -> None:
    weight, bias = node.tensors["weight"], node.tensors.get("bias")
    if len(shape) == 1:
        more = [] if bias is None else [w.constant("bias", bias)]
        w.node("Gemm", [*inputs, w.constant("weight", weight), *more], output, transB=1)
        return
    product = output if bias is None else w.between("product")
    w.node("MatMul", [*inputs, w.constant("weight", weight.T)], product)
    if bias is not None:
        w.node("Add", [product, w.constant("bias", bias)], output)


def _conv(w: _Writer, node: Node, inputs: list[str], output: str, shape: tuple[int, ...]) -> None:
    a: Any = node.attributes
    tensors = [w.constant(name, node.tensors[name]) for name in ("weight", "bias") if name in node.tensors]
    w.node(
        *("Conv", [*inputs, *tensors], output),
        kernel_shape=list(node.tensors["weight"].shape[2:]),
        strides=list(a["stride"]),
        pads=[*a["padding"], *a["padding"]],
        dilations=list(a["dilation"]),
        group=a["groups"],
    )


def _channels(node: Node, name: str, count: int, default: float) -> NDArray[np.float32]:
    return node.tensors.get(name, np.full(count, default, np.float32))


def _batchnorm(w: _Writer, node: Node, inputs: list[str], output: str, shape: tuple[int, ...]) -> None:
    tensors = [
        w.constant("weight", _channels(node, "weight", shape[0], 1)),
        w.constant("bias", _channels(node, "bias", shape[0], 0)),
        *(w.constant(name, node.tensors[name]) for name in ("running_mean", "running_var")),
    ]
    w.node("BatchNormalization", [*inputs, *tensors], output, epsilon=node.attributes["eps"])


def _instancenorm(w: _Writer, node: Node, inputs: list[str], output: str, shape: tuple[int, ...]) -> None:
    tensors = [
        w.constant("weight", _channels(node, "weight", shape[0], 1)),
        w.constant("bias", _channels(node, "bias", shape[0], 0)),
    ]
    w.node("InstanceNormalization", [*inputs, *tensors], output, epsilon=node.attributes["eps"])


def _pool(w: _Writer, node: Node, inputs: list[str], output: str, shape: tuple[int, ...]) -> None:
    a: Any = node.attributes
    more: dict[str, Any] = {"count_include_pad": 1} if node.op == "avgpool" else {}
    w.node(
        *("AveragePool" if more else "MaxPool", inputs, output),
        kernel_shape=list(a["kernel"]),
        strides=list(a["stride"]),
        pads=[*a["padding"], *a["padding"]],
        **more,
    )


def _bias_map(w: _Writer, node: Node, inputs: list[str], output: str, shape: tuple[int, ...]) -> None:
    w.node("Add", [*inputs, w.constant("bias", node.tensors["bias"][np.newaxis])], output)


def _subsample(w: _Writer, node: Node, inputs: list[str], output: str, shape: tuple[int, ...]) -> None:
    steps: Any = node.attributes["step"]
    n = len(steps)
    bounds = {"starts": [0] * n, "ends": [2**31 - 1] * n, "axes": range(2, 2 + n), "steps": steps}
    w.node("Slice", [*inputs, *(w.constant(k, np.array(v, np.int64)) for k, v in bounds.items())], output)


def _pad_channels(w: _Writer, node: Node, inputs: list[str], output: str, shape: tuple[int, ...]) -> None:
    rest = [0] * (len(shape) - 1)
    pads = [0, node.attributes["before"], *rest, 0, node.attributes["after"], *rest]
    w.node(
        "Pad",
        [*inputs, w.constant("pads", np.array(pads, np.int64)), w.constant("zero", np.zeros((), np.float32))],
        output,
    )


def _embedding(w: _Writer, node: Node, inputs: list[str], output: str, shape: tuple[int, ...]) -> None:
    w.node("Gather", [w.constant("weight", node.tensors["weight"]), *inputs], output, axis=0)


def _lstm(w: _Writer, node: Node, inputs: list[str], output: str, shape: tuple[int, ...]) -> None:
    """Write gates in ONNX's order, and examples behind steps; directions are an axis of their own."""
    both = node.attributes["bidirectional"] == 1
    suffixes = ("", "_reverse") if both else ("",)
    hidden = node.tensors["weight_hh"].shape[1]

    def gates(name: str) -> NDArray[np.float32]:
        stacked = []
        for suffix in suffixes:
            i, f, g, o = np.split(node.tensors.get(name + suffix, np.zeros(4 * hidden, np.float32)), 4)
            stacked.append(np.concatenate([i, o, f, g]))
        return np.stack(stacked)

    bias = gates("bias")
    steps_first = w.node("Transpose", inputs, w.between("steps first"), perm=[1, 0, 2])
    tensors = [
        w.constant("weight_ih", gates("weight_ih")),
        w.constant("weight_hh", gates("weight_hh")),
        w.constant("bias", np.concatenate([bias, np.zeros_like(bias)], axis=1)),
    ]
    from onnx import helper

    last = node.attributes["last"] == 1
    result = w.between("states")
    outputs = ["", result] if last else [result]
    direction = "bidirectional" if both else "forward"
    w.nodes.append(
        helper.make_node(
            "LSTM", [steps_first, *tensors], outputs, name=f"LSTM {output}", hidden_size=hidden, direction=direction
        )
    )
    # [directions, B, H] or [steps, directions, B, H]
    by_example = w.node("Transpose", [result], w.between("by example"), perm=[1, 0, 2] if last else [2, 0, 1, 3])
    shape_out = [0, -1] if last else [0, 0, -1]
    w.node("Reshape", [by_example, w.constant("shape", np.array(shape_out, np.int64))], output)


def _named(w: _Writer, node: Node, inputs: list[str], output: str, shape: tuple[int, ...]) -> None:
    op, attributes = _NAMES[node.op]
    given = {"alpha": node.attributes["slope"]} if node.op == "leaky_relu" else {}
    w.node(op, inputs, output, **attributes, **given)


_NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "leaky_relu": ("LeakyRelu", {}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "mean": ("GlobalAveragePool", {}),
    "flatten": ("Flatten", {"axis": 1}),
    "add": ("Add", {}),
}

_WRITE = {
    "linear": _linear,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "batchnorm": _batchnorm,
    "instancenorm": _instancenorm,
    "bias_map": _bias_map,
    "maxpool": _pool,
    "avgpool": _pool,
    "subsample": _subsample,
    "pad_channels": _pad_channels,
    "embedding": _embedding,
    "lstm": _lstm,
}
