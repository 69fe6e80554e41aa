"""Simplified graphs compute what they did before, and what is dead is gone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedsparsify.export import reference
from fedsparsify.export.graph import Graph, Node
from fedsparsify.export.passes import fold_batchnorm, remove_dead, simplify
from fedsparsify.export.trace import trace
from tests.export.networks import NETWORKS, network, pruned_at_random

CONV: dict[str, Any] = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}


def inputs(graph: Graph, count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    if graph.input_dtype == "int64":
        return rng.integers(0, 50, (count, *graph.input_shape))
    return rng.normal(size=(count, *graph.input_shape)).astype(np.float32)


def assert_same_function(a: Graph, b: Graph, count: int = 3) -> None:
    x = inputs(a, count)
    expected, found = reference.run(a, x), reference.run(b, x)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


CASES = [(name, density) for name in NETWORKS for density in (0.5, 0.05) if name != "vgg-16"]
CASES.remove(("3d-cnn", 0.05))  # instance norm of channels that hardly vary: float32 has no such accuracy


@pytest.mark.parametrize(("name", "density"), CASES)
def test_simplifying_keeps_the_function(name: str, density: float) -> None:
    graph = trace(network(name, density), NETWORKS[name][0])
    simple = simplify(graph)
    assert_same_function(graph, simple)
    removed = graph.parameters - sum(n.tensors["weight"].size for n in simple.nodes if "weight" in n.tensors)
    assert removed > 0.1 * graph.parameters or name in ("lstm", "3d-cnn")


def test_what_batch_norm_and_dead_channels_add_is_one_map() -> None:
    graph = simplify(trace(network("6-cnn", 0.1), (3, 32, 32)))
    after = {i: node.op for node in graph.nodes for i in node.inputs}
    maps = [index + 1 for index, node in enumerate(graph.nodes) if node.op == "bias_map"]
    assert maps and all(after[value] == "relu" for value in maps)


def test_a_dead_neuron_leaves_with_its_row_and_column_and_its_bias_moves_on() -> None:
    first = np.array([[1, 2], [0, 0], [0, 0], [3, 4]], np.float32)
    second = np.array([[1, 10, 100, 1000]], np.float32)
    graph = Graph(
        (2,),
        "float32",
        (
            Node("linear", (0,), {}, {"weight": first, "bias": np.array([0, 5, -7, 0], np.float32)}),
            Node("relu", (1,)),
            Node("linear", (2,), {}, {"weight": second, "bias": np.array([1], np.float32)}),
        ),
    )
    simple = remove_dead(graph)
    np.testing.assert_array_equal(simple.nodes[0].tensors["weight"], [[1, 2], [3, 4]])
    np.testing.assert_array_equal(simple.nodes[2].tensors["weight"], [[1, 1000]])
    np.testing.assert_array_equal(simple.nodes[2].tensors["bias"], [51])  # 1 + 10 * relu(5) + 100 * relu(-7)


def test_a_neuron_that_nobody_reads_leaves_and_so_do_those_that_only_it_reads() -> None:
    eye = np.eye(3, dtype=np.float32)
    last = np.array([[1, 0, 0]], np.float32)
    nodes = [Node("linear", (i,), {}, {"weight": w}) for i, w in enumerate((eye, eye, last))]
    simple = remove_dead(Graph((3,), "float32", tuple(nodes)))
    assert [node.tensors["weight"].shape for node in simple.nodes] == [(1, 3), (1, 1), (1, 1)]


def test_a_constant_channel_before_zero_padding_becomes_a_map_that_differs_at_the_border() -> None:
    first = np.zeros((2, 1, 1, 1), np.float32)
    first[1] = 1
    second = np.ones((1, 2, 3, 3), np.float32)
    graph = Graph(
        (1, 4, 4),
        "float32",
        (
            Node("conv2d", (0,), {**CONV, "padding": (0, 0)}, {"weight": first, "bias": np.array([2, 0], np.float32)}),
            Node("conv2d", (1,), CONV, {"weight": second}),
        ),
    )
    simple = remove_dead(graph)
    assert ops(simple) == ["conv2d", "conv2d", "bias_map"]
    np.testing.assert_array_equal(
        simple.nodes[2].tensors["bias"][0], [[8, 12, 12, 8], [12, 18, 18, 12], [12, 18, 18, 12], [8, 12, 12, 8]]
    )
    assert_same_function(graph, simple)


def test_a_network_that_is_all_dead_still_returns_its_constants() -> None:
    graph = trace(pruned_at_random(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), 0.0), [5])
    simple = simplify(graph)
    assert_same_function(graph, simple)
    assert simple.nodes[0].tensors["weight"].shape == (1, 5)


def test_outputs_and_inputs_keep_their_shape() -> None:
    first, last = nn.Linear(5, 4), nn.Linear(4, 6)
    module = nn.Sequential(first, nn.ReLU(), last)
    with torch.no_grad():
        last.weight[1:] = 0
        first.weight[:, :3] = 0
    graph = trace(module, [5])
    assert reference.run(simplify(graph), inputs(graph, 7)).shape == (7, 6)


BEFORE = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU())
AFTER = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 5, 3, stride=2, padding=1), nn.ReLU())
FLAT = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(75, 4))


@pytest.mark.parametrize("module", [BEFORE, AFTER, FLAT], ids=["before", "after", "flattened"])
def test_batch_norm_is_folded_into_the_layer_before_or_after_it(module: nn.Sequential) -> None:
    graph = trace(pruned_at_random(module, 0.6), [2, 7, 7])
    simple = fold_batchnorm(graph)
    assert "batchnorm" not in ops(simple)
    assert_same_function(graph, simple)


def test_batch_norm_that_two_layers_read_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.a, self.b = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(torch.relu(x))
            z: torch.Tensor = self.a(y) + self.b(y)
            return z

    graph = trace(pruned_at_random(Twice(), 0.9), [2, 4, 4])
    simple = simplify(graph)
    assert "batchnorm" in ops(simple)
    assert_same_function(graph, simple)


@pytest.mark.parametrize("dimensions", [1, 3])
def test_maps_of_biases_are_right_in_other_dimensions_with_stride_and_dilation(dimensions: int) -> None:
    conv: Any = {1: nn.Conv1d, 3: nn.Conv3d}[dimensions]
    first, last = conv(2, 6, 3, padding=1), conv(6, 3, 3, stride=2, padding=2, dilation=2)
    module = pruned_at_random(nn.Sequential(first, nn.ReLU(), last, nn.ReLU(), conv(3, 2, 1)), 0.6)
    with torch.no_grad():
        first.weight[0] = 0
        first.bias[0] = 1
        last.weight[:] = 0.1
    graph = trace(module, [2, *(9, 7, 8)[:dimensions]])
    simple = simplify(graph)
    assert "bias_map" in ops(simple)
    assert_same_function(graph, simple)
