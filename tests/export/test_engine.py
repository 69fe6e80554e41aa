"""The engine computes what the network computes, on every backend, for every batch and from many threads."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedsparsify import sparse
from fedsparsify.errors import ArgumentError
from fedsparsify.export import reference
from fedsparsify.export.engine import Engine
from fedsparsify.export.fallback import NumpyNetwork, convolution
from fedsparsify.export.graph import Graph, Node
from fedsparsify.export.passes import simplify
from fedsparsify.export.trace import trace
from tests.export.networks import NETWORKS, network, outputs_of, pruned_at_random

needs_native = pytest.mark.skipif(not sparse.available(), reason="the native kernels are not built")
TARGETS = sparse.targets()
NATIVE = ("2-fc", "6-cnn", "6-cnn of odd size", "resnet-20", "vgg-16")


def examples(name: str, count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    shape = (count, *NETWORKS[name][0])
    return rng.integers(0, 50, shape) if name == "lstm" else rng.normal(size=shape).astype(np.float32)


def assert_close(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(found - expected).max(initial=0) <= 1e-5 * np.abs(expected).max(initial=0)


@pytest.mark.parametrize("density", [0.4, 0.04])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_outputs_are_the_networks(name: str, density: float) -> None:
    module = network(name, density)
    x = examples(name, 11)
    engine = Engine(trace(module, NETWORKS[name][0]))
    expected = outputs_of(module, x)
    assert_close(engine.run(x), expected)
    assert_close(engine.run(x[:1]), expected[:1])


@needs_native
@pytest.mark.parametrize("name", NATIVE)
def test_the_paper_s_networks_of_planes_and_features_run_natively(name: str) -> None:
    engine = Engine(trace(network(name, 0.1), NETWORKS[name][0]))
    assert (engine.backend, engine.why) == ("native", "")


@needs_native
@pytest.mark.parametrize("name", ["2-fc", "6-cnn", "6-cnn of odd size"])
def test_every_batch_gives_each_example_its_own_output(name: str) -> None:
    module = network(name, 0.1)
    engine = Engine(trace(module, NETWORKS[name][0]))
    x = examples(name, 40)
    expected = outputs_of(module, x)
    for count in range(1, 41) if name == "2-fc" else (1, 2, 3, 5, 6, 7, 8, 9, 15, 17, 40):
        assert_close(engine.run(x[:count]), expected[:count])


@needs_native
def test_an_empty_batch_has_no_outputs() -> None:
    engine = Engine(trace(network("2-fc", 0.1), (1, 28, 28)))
    assert engine.run(np.zeros((0, 1, 28, 28), np.float32)).shape == (0, 10)


@needs_native
@pytest.mark.parametrize("name", ["2-fc", "6-cnn", "resnet-20"])
def test_threads_do_not_disturb_each_other(name: str) -> None:
    engine = Engine(trace(network(name, 0.1), NETWORKS[name][0]))
    batches = [examples(name, 1 + 5 * i % 17, seed=i) for i in range(24)]
    alone = [engine.run(x) for x in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(engine.run, batches))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


def single(op: str, shape: tuple[int, ...], **given: Any) -> Graph:
    """Return a graph of one operation with random tensors, a fifth of their values left."""
    rng = np.random.default_rng(1)
    tensors = {name: size for name, size in given.items() if name in ("weight", "bias", "running_mean", "running_var")}
    made = {}
    for name, size in tensors.items():
        values = rng.normal(size=size) * (rng.random(size) < 0.2)
        made[name] = (np.abs(values) + 0.5 if name == "running_var" else values).astype(np.float32)
    attributes = {name: value for name, value in given.items() if name not in tensors}
    return Graph(shape, "float32", (Node(op, (0,), attributes, made),))


def conv(shape: tuple[int, int, int], out: int, kernel: tuple[int, int], **given: Any) -> Graph:
    settings = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, **given}
    weight = (out, shape[0] // settings["groups"], *kernel)
    return single("conv2d", shape, weight=weight, bias=(out,), **settings)


def pool(op: str, shape: tuple[int, int, int], kernel: tuple[int, int], stride: tuple[int, int]) -> Graph:
    return single(op, shape, kernel=kernel, stride=stride, padding=(0, 0))


LAYERS = {
    "linear": single("linear", (37,), weight=(11, 37), bias=(11,)),
    "linear without bias": single("linear", (200,), weight=(5, 200)),
    "conv": conv((3, 16, 16), 5, (3, 3), padding=(1, 1)),
    "conv of many channels": conv((70, 8, 8), 9, (3, 3), padding=(1, 1)),
    "conv of odd size": conv((4, 13, 17), 6, (3, 3), padding=(1, 1)),
    "conv with stride": conv((4, 16, 12), 6, (3, 3), padding=(1, 1), stride=(2, 2)),
    "conv with stride 3 by 2": conv((4, 17, 23), 6, (5, 3), padding=(2, 1), stride=(3, 2)),
    "conv without padding": conv((4, 11, 9), 6, (3, 5)),
    "conv of one pixel": conv((9, 6, 6), 4, (1, 1)),
    "conv with a large kernel": conv((2, 12, 12), 3, (7, 7), padding=(3, 3)),
    "conv with a kernel larger than a part": conv((2, 8, 8), 3, (9, 9), padding=(4, 4)),
    "conv with an even kernel": conv((2, 8, 8), 3, (2, 2), padding=(1, 1)),
    "conv with dilation": conv((2, 12, 12), 3, (3, 3), padding=(2, 2), dilation=(2, 2)),
    "conv in groups": conv((8, 8, 8), 12, (3, 3), padding=(1, 1), groups=4),
    "conv of one row": conv((3, 1, 40), 4, (1, 3), padding=(0, 1)),
    "maxpool": pool("maxpool", (3, 16, 16), (2, 2), (2, 2)),
    "maxpool of odd size": pool("maxpool", (3, 13, 17), (2, 2), (2, 2)),
    "maxpool that overlaps": pool("maxpool", (3, 13, 17), (3, 2), (2, 1)),
    "avgpool": pool("avgpool", (3, 12, 16), (2, 4), (2, 4)),
    "batchnorm": single("batchnorm", (3, 6, 8), eps=1e-5, **dict.fromkeys(
        ("weight", "bias", "running_mean", "running_var"), (3,))),
    "batchnorm of features": single("batchnorm", (13,), eps=1e-5, running_mean=(13,), running_var=(13,)),
    "relu": single("relu", (3, 6, 8)),
    "subsample": single("subsample", (3, 7, 8), step=(2, 3)),
    "pad channels": single("pad_channels", (3, 4, 4), before=2, after=3),
    "flatten": single("flatten", (3, 6, 4)),
    "map of biases": single("bias_map", (3, 6, 4), bias=(3, 6, 4)),
}  # fmt: skip


@needs_native
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "map of biases"])
def test_each_native_layer_is_its_numpy_twin(name: str, target: str) -> None:
    graph = LAYERS[name]
    engine = Engine(graph, backend="native", target=target)
    x = np.random.default_rng(0).normal(size=(19, *graph.input_shape)).astype(np.float32)
    expected = reference.run(graph, x)
    for count in (1, 2, 8, 16, 19):
        assert_close(engine.run(x[:count]), expected[:count])


@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith("conv")])
def test_the_fallback_s_convolution_is_the_reference_s(name: str) -> None:
    graph = LAYERS[name]
    x = np.random.default_rng(0).normal(size=(3, *graph.input_shape)).astype(np.float32)
    assert_close(convolution(graph.nodes[0], x), reference.run(graph, x))


def test_the_fallback_computes_as_many_examples_at_once_as_its_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = LAYERS["conv"]
    x = np.random.default_rng(0).normal(size=(7, *graph.input_shape)).astype(np.float32)
    monkeypatch.setattr("fedsparsify.export.fallback._AT_ONCE", 2 * 5 * 16 * 16)
    assert_close(NumpyNetwork(graph).run(x), reference.run(graph, x))
    assert NumpyNetwork(graph).run(x[:0]).shape == (0, 5, 16, 16)


class Mixed(nn.Module):
    """Branches, sums, a map of biases, and parts of the picture that change their cut."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(2, 7, 3, padding=1), nn.BatchNorm2d(7), nn.Conv2d(7, 7, 3, padding=1)
        self.c, self.side = nn.Conv2d(7, 9, 5, stride=2, padding=2), nn.Conv2d(7, 9, 1, stride=2)
        self.out = nn.Linear(9 * ((size + 1) // 2 // 2) ** 2 + 0, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.a(x))
        y = F.relu(self.b(self.norm(y)) + y)
        y = F.max_pool2d(F.relu(self.c(y) + self.side(y)), 2)
        z: torch.Tensor = self.out(y.flatten(1))
        return z


@needs_native
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [8, 11, 16, 20, 28, 33])
def test_branches_and_sums_at_any_size(size: int, target: str) -> None:
    module = pruned_at_random(Mixed(size), 0.4, seed=size)
    engine = Engine(trace(module, (2, size, size)), backend="native", target=target)
    x = np.random.default_rng(size).normal(size=(9, 2, size, size)).astype(np.float32)
    expected = outputs_of(module, x)
    assert_close(engine.run(x), expected)
    assert_close(engine.run(x[:1]), expected[:1])


@needs_native
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [40, 37])
def test_large_values_are_made_and_used_up_a_few_rows_at_a_time(size: int, target: str) -> None:
    module = nn.Sequential(
        nn.Conv2d(2, 40, 3, padding=1), nn.ReLU(), nn.Conv2d(40, 36, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(36, 80, 3, padding=1), nn.ReLU(), nn.Conv2d(80, 90, 3, stride=2, padding=(2, 1)), nn.ReLU(),
        nn.Conv2d(90, 100, 1), nn.ReLU(), nn.Conv2d(100, 4, 3), nn.AvgPool2d(2), nn.Flatten(), nn.LazyLinear(3),
    )  # fmt: skip
    module(torch.zeros(1, 2, size, size))
    pruned_at_random(module, 0.1, seed=size)
    engine = Engine(trace(module, (2, size, size)), backend="native", target=target)
    assert "[" in engine.describe() or target == "portable"
    x = np.random.default_rng(size).normal(size=(17, 2, size, size)).astype(np.float32)
    expected = outputs_of(module, x)
    assert_close(engine.run(x), expected)
    assert_close(engine.run(x[:1]), expected[:1])


def test_without_the_extension_numpy_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    module = network("6-cnn of odd size", 0.1)
    graph = trace(module, (1, 27, 27))
    x = examples("6-cnn of odd size", 3)
    monkeypatch.setattr("fedsparsify.export.engine.available", lambda: False)
    engine = Engine(graph)
    assert engine.backend == "numpy" and "not built" in engine.why
    assert_close(engine.run(x), outputs_of(module, x))
    with pytest.raises(ArgumentError, match="not built"):
        Engine(graph, backend="native")


def test_what_has_no_native_operation_says_so() -> None:
    graph = single("tanh", (4,))
    assert "tanh" in Engine(graph).why or not sparse.available()
    with pytest.raises(ArgumentError, match="cannot run"):
        Engine(graph, backend="native")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 3), np.float32), r"shape \(2, 3\)"),
        (np.zeros(4, np.float32), "shape"),
        (np.float32(1), "shape"),
        (np.zeros((2, 4), np.complex64), "complex64"),
    ],
)
def test_wrong_inputs_are_refused(x: Any, message: str) -> None:
    engine = Engine(single("linear", (4,), weight=(2, 4)))
    with pytest.raises(ArgumentError, match=message):
        engine.run(np.asarray(x))


def test_inputs_of_other_number_types_and_layouts_are_converted() -> None:
    engine = Engine(single("linear", (37,), weight=(11, 37), bias=(11,)))
    x = np.random.default_rng(0).integers(0, 255, (6, 37))
    expected = engine.run(x.astype(np.float32))
    for other in (x, x.astype(np.float64), np.asfortranarray(x.astype(np.float32)), x.astype(np.float32)[::1]):
        np.testing.assert_array_equal(engine.run(other), expected)


@needs_native
def test_a_nan_reaches_the_output_of_its_own_example_alone() -> None:
    module = network("6-cnn", 0.5)
    engine = Engine(trace(module, (3, 32, 32)))
    x = examples("6-cnn", 9)
    x[4, 1, 5, 5] = np.nan
    y = engine.run(x)
    assert np.isnan(y[4]).any() and np.isfinite(np.delete(y, 4, axis=0)).all()


@needs_native
def test_only_surviving_weights_are_multiplied() -> None:
    graph = trace(network("6-cnn", 0.05), (3, 32, 32))
    simple = simplify(graph)
    positions = {"conv1": 32, "conv2": 32, "conv3": 16, "conv4": 16, "conv5": 8, "conv6": 8, "fc1": 1, "fc2": 1}
    expected = sum(
        int(np.count_nonzero(node.tensors["weight"])) * positions[node.name] ** 2
        for node in simple.nodes
        if "weight" in node.tensors
    )
    assert Engine(graph).multiply_adds() == expected


def test_the_engine_does_not_load_torch() -> None:
    code = "import sys, fedsparsify.export.engine; sys.exit('torch' in sys.modules)"
    source = str(Path(__file__).parents[2] / "src")
    run = subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ, "PYTHONPATH": source})
    assert run.returncode == 0
