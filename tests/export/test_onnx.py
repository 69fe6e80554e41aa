"""ONNX Runtime computes from the exported file what the graph computes, and safetensors hold what was put in."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedsparsify.errors import MissingExtraError
from fedsparsify.export.graph import Attribute, Graph, Node
from fedsparsify.export.onnx_file import encode_onnx
from fedsparsify.export.reference import run
from fedsparsify.export.safetensors_file import dense_size, encode_compact, encode_state, named_tensors
from fedsparsify.export.trace import trace
from tests.export.cases import ARTIFACTS, pruned
from tests.export.test_trace import NETWORKS, stirred

onnxruntime = pytest.importorskip("onnxruntime")


def ran(data: bytes, x: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    y: np.ndarray[Any, np.dtype[np.float32]] = session.run(["output"], {"input": x})[0]
    return y


def inputs(graph: Graph, batch: int = 3) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    if graph.input_dtype == "int64":
        return rng.integers(0, len(graph.nodes[0].tensors["weight"]), (batch, *graph.input_shape))
    return rng.normal(size=(batch, *graph.input_shape)).astype(np.float32)


def close(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> None:
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gives_the_same_outputs(name: str, compact: bool) -> None:
    options, shape = NETWORKS[name]
    graph = pruned(trace(stirred(name, options), shape), 0.3)
    data = encode_onnx(graph, compact)
    for batch in (1, 3):
        x = inputs(graph, batch)
        close(ran(data, x), run(graph, x))


NUMBERS: dict[str, Attribute] = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 1)}
CONV: dict[str, Attribute] = {"stride": (1, 2), "padding": (1, 0), "dilation": (2, 1), "groups": 2}


@pytest.mark.parametrize(
    "node",
    [
        Node("conv2d", (0,), CONV, {"weight": np.ones((2, 1, 3, 2), np.float32)}),
        Node("avgpool", (0,), NUMBERS),
        Node("maxpool", (0,), NUMBERS),
        Node("linear", (0,), {}, {"weight": np.ones((3, 5), np.float32), "bias": np.ones(3, np.float32)}),
        Node("linear", (0,), {}, {"weight": np.ones((3, 5), np.float32)}),
        Node("leaky_relu", (0,), {"slope": 0.1}),
        Node("sigmoid", (0,)),
        Node("tanh", (0,)),
        Node("mean", (0,)),
        Node("add", (0, 0)),
        Node("subsample", (0,), {"step": (2, 3)}),
        Node("pad_channels", (0,), {"before": 1, "after": 2}),
        Node("instancenorm", (0,), {"eps": 1e-5}),
        Node("bias_map", (0,), {}, {"bias": np.arange(60, dtype=np.float32).reshape(2, 6, 5)}),
    ],
    ids=lambda node: f"{node.op} {len(node.tensors)}",
)
def test_every_operation_gives_the_same_outputs(node: Node) -> None:
    graph = Graph((2, 6, 5), "float32", (node,))
    x = inputs(graph)
    close(ran(encode_onnx(graph), x), run(graph, x))


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("both", [0, 1])
def test_an_lstm_of_any_form_gives_the_same_outputs(both: int, last: int) -> None:
    rng = np.random.default_rng(0)
    shapes = {"weight_ih": (12, 4), "weight_hh": (12, 3), "bias": (12,)}
    tensors = {
        name + suffix: rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
        for suffix in ("", "_reverse")[: 1 + both]
    }
    graph = Graph((5, 4), "float32", (Node("lstm", (0,), {"bidirectional": both, "last": last}, tensors),))
    close(ran(encode_onnx(graph), inputs(graph)), run(graph, inputs(graph)))


def with_dead_units(graph: Graph) -> Graph:
    """Kill half of the hidden units of the case "picture" by their weights."""
    nodes = list(graph.nodes)
    weight = nodes[5].tensors["weight"].copy()
    weight[::2] = 0
    nodes[5] = replace(nodes[5], tensors={**nodes[5].tensors, "weight": weight})
    return replace(graph, nodes=tuple(nodes))


def test_compact_files_are_smaller_and_say_the_same() -> None:
    graph = with_dead_units(ARTIFACTS["picture"].graph)
    whole, compact = encode_onnx(graph), encode_onnx(graph, compact=True)
    assert len(compact) < 0.7 * len(whole)
    close(ran(compact, inputs(graph)), ran(whole, inputs(graph)))
    assert len(encode_compact(graph)) < 0.7 * dense_size(graph)


def test_the_files_say_who_made_them_and_take_any_batch() -> None:
    import onnx

    model = onnx.load_from_string(encode_onnx(ARTIFACTS["picture"].graph))
    assert model.producer_name == "fedsparsify"
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", 1, 8, 8]


def test_safetensors_hold_every_tensor_and_its_size_is_known_before() -> None:
    from safetensors.numpy import load

    for artifact in ARTIFACTS.values():
        tensors = named_tensors(artifact.graph)
        data = encode_state(tensors)
        assert len(data) == dense_size(artifact.graph)
        found = load(data)
        assert set(found) == set(tensors)
        assert all(np.array_equal(found[name], t) for name, t in tensors.items())
    assert "conv.weight" in named_tensors(ARTIFACTS["picture"].graph)


@pytest.mark.parametrize(
    ("package", "write"), [("onnx", encode_onnx), ("safetensors", lambda graph: encode_state(named_tensors(graph)))]
)
def test_a_missing_package_is_named(
    package: str, write: Callable[[Graph], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"fedsparsify\[export\]"):
        write(ARTIFACTS["table"].graph)
