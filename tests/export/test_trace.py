"""A traced network computes what PyTorch's does, and what a graph cannot say is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsparsify.errors import ArgumentError
from fedsparsify.export.reference import run
from fedsparsify.export.trace import trace
from fedsparsify.layout import ParameterLayout
from fedsparsify.models import build
from fedsparsify.state import ModelState

NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "2-fc": ({}, (1, 28, 28)),
    "6-cnn": ({"size": 8}, (3, 8, 8)),
    "resnet-20": ({}, (3, 8, 8)),
    "vgg-16": ({}, (3, 32, 32)),
    "lstm": ({"vocabulary": 50, "embedding": 6, "hidden": 5}, (7,)),
    "3d-cnn": ({"pools": 2, "width": 4}, (1, 9, 8, 11)),
}


def stirred(name: str, options: dict[str, Any]) -> nn.Module:
    """Build a network whose every number matters: random shifts, running statistics and scales."""
    module = build(name, 5, **options).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if "var" in key else 0))
    return module


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_ours_computes_the_same(name: str) -> None:
    options, shape = NETWORKS[name]
    module = stirred(name, options)
    graph = trace(module, shape)
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    if graph.input_dtype == "int64":
        x = np.random.default_rng(0).integers(0, 50, (4, *shape)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run(graph, x), expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())
    assert graph.parameters == ParameterLayout.of(module).n


def test_a_model_state_takes_the_place_of_the_modules_own_values() -> None:
    module = build("2-fc", 1, inputs=4, classes=2, hidden=3)
    w, buffers = ParameterLayout.of(module).read(module)
    mask = np.arange(len(w)) % 3 == 0
    graph = trace(module, [4], ModelState(np.where(mask, np.float32(2), np.float32(0)), mask, buffers))
    assert graph.nonzero == mask.sum()
    assert {float(v) for node in graph.nodes for t in node.tensors.values() for v in t.flat} == {0.0, 2.0}
    assert np.array_equal(ParameterLayout.of(module).read(module)[0], w), "the module was changed"


class Own(nn.Module):
    """A user's network: Python, functions and methods between its layers."""

    def __init__(self, between: Callable[[Own, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding="same", groups=2, stride=1)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.fc = nn.Linear(4 * 6 * 6, 3)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(torch.flatten(self.between(self, self.norm(self.conv(x))), 1))
        return y


@pytest.mark.parametrize(
    ("between", "ops"),
    [
        (lambda m, x: F.relu(x, inplace=True), ["relu"]),
        (lambda m, x: torch.tanh(x) + x.sigmoid(), ["tanh", "sigmoid", "add"]),
        (lambda m, x: F.leaky_relu(x, 0.2) if x.shape[1] == 4 else x, ["leaky_relu"]),
        (lambda m, x: F.avg_pool2d(x, 3, 1, 1), ["avgpool"]),
        (lambda m, x: F.max_pool2d(x, 3, stride=1, padding=1), ["maxpool"]),
        (lambda m, x: F.dropout(x, 0.5, m.training).view(x.size(0), -1), ["flatten"]),
        (lambda m, x: F.adaptive_avg_pool2d(F.pad(x, (0, 0, 0, 0, 1, 2)), 6)[:, :, ::1], ["pad_channels", "avgpool"]),
    ],
)
def test_a_users_network_computes_the_same(between: Callable[[Own, Tensor], Tensor], ops: list[str]) -> None:
    module = Own(between).eval()
    shape = (2, 6, 6)
    if "pad_channels" in ops:
        module.fc = nn.Linear(7 * 6 * 6, 3)
    graph = trace(module, shape)
    assert [node.op for node in graph.nodes if node.op in ops] == ops
    assert [node.name for node in graph.nodes if node.op == "conv2d"] == ["conv"]
    x = torch.randn(3, *shape)
    with torch.no_grad():
        np.testing.assert_allclose(run(graph, x.numpy()), module(x).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (lambda m, x: torch.fft.fft(x).real, "fft"),
        (lambda m, x: x * m.scale, "mul"),
        (lambda m, x: x + m.scale, "mixes a value with scale"),
        (lambda m, x: x if x.sum() > 0 else -x, "sum"),
        (lambda m, x: x.transpose(2, 3), "transposes"),
        (lambda m, x: x[:, 1:], "takes the part"),
        (lambda m, x: F.dropout(x, 0.5, True), "chance"),
        (lambda m, x: F.max_pool2d(x, 3, 1, 1, ceil_mode=True), "ceil_mode"),
        (lambda m, x: x.reshape(-1, 6, 6), "reshapes"),
        (lambda m, x: F.pad(x, (1, 1)), "pads by"),
        (lambda m, x: torch.from_numpy(x.numpy()), "numpy"),
        (lambda m, x: x[:, :, :, :5], "takes the part"),
        (lambda m, x: F.conv2d(x, x[:, :, ::2, ::2]), "computes the weight"),
        (lambda m, x: F.relu(m.undefined), "no attribute"),
    ],
)
def test_what_a_graph_cannot_say_is_refused_by_name(between: Callable[[Own, Tensor], Tensor], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        trace(Own(between), (2, 6, 6))


def test_another_shape_than_the_networks_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"fails on an input of shape \[3, 5\]"):
        trace(nn.Linear(4, 2), [5])


def test_a_network_that_ignores_its_input_is_refused() -> None:
    class Deaf(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 2)

    with pytest.raises(ArgumentError, match="depends on its input"):
        trace(Deaf(), [4])


def test_a_network_that_depends_on_the_batch_is_refused() -> None:
    class Shy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(x)
            return F.relu(y) if len(x) == 3 else y

    torch.manual_seed(0)
    with pytest.raises(ArgumentError, match="depends on the batch"):
        trace(Shy(), [4])


@pytest.mark.parametrize("bias", [True, False])
def test_one_direction_and_its_last_state_are_understood(bias: bool) -> None:
    class Forward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(9, 4)
            self.lstm = nn.LSTM(4, 3, num_layers=2, batch_first=True, bias=bias)

        def forward(self, x: Tensor) -> Tensor:
            last: Tensor = self.lstm(self.words(x.long()))[1][0][-1]
            return last

    module = Forward().eval()
    graph = trace(module, [5])
    assert [(n.op, n.attributes.get("last")) for n in graph.nodes] == [("embedding", None), ("lstm", 0), ("lstm", 1)]
    x = np.arange(10).reshape(2, 5) % 9
    with torch.no_grad():
        np.testing.assert_allclose(run(graph, x), module(torch.from_numpy(x)).numpy(), atol=1e-6)


def test_a_network_of_ones_own_becomes_an_artifact_that_names_its_classes() -> None:
    from fedsparsify.data import Dataset
    from fedsparsify.export import SparseModel
    from fedsparsify.finished import artifact_of

    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x = np.random.default_rng(0).normal(size=(6, 2, 2)).astype(np.float32)
    artifact = artifact_of(network, Dataset(x, np.array([0, 1, 2, 0, 1, 2])), {"method": "mine"})
    assert artifact.recipe.labels == ("0", "1", "2") and artifact.provenance["method"] == "mine"
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(SparseModel(artifact).predict(x).scores, expected, atol=1e-6)
    regression = artifact_of(nn.Linear(4, 1), Dataset(x.reshape(6, 4), x[:, 0, :1], y_scale=3.0))
    assert regression.recipe.labels == () and regression.recipe.target_scale == 3


def test_a_run_that_was_started_from_python_is_exported_there(tmp_path: Path) -> None:
    from fedsparsify import federate, load_run
    from fedsparsify.data import Dataset
    from fedsparsify.errors import RunError
    from fedsparsify.export import SparseModel, save_artifact
    from fedsparsify.finished import load_finished

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

    x = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
    y = (x.sum(1) > 0).astype(np.int64)
    settings: dict[str, dict[str, Any]] = {
        "run": {"rounds": 2, "workers": 1},
        "schedule": {"final": 0.5},
        "train": {"lr": 0.1},
    }
    clients = [(x[:40], y[:40]), (x[40:60], y[40:60])]
    run = federate(model=network, clients=clients, test=(x[60:], y[60:]), settings=settings, out=tmp_path / "run")
    with pytest.raises(RunError, match=r"export it there by load_finished\(run, network=\.\.\., test=\.\.\.\)"):
        load_finished(run)
    finished = load_finished(run, network=network(), test=Dataset(x[60:], y[60:]))
    save_artifact(finished.artifact, run / "model.fsz")
    model = SparseModel.load(run / "model.fsz")
    last = load_run(run).last
    assert np.mean(model.predict(x[60:]).classes == y[60:]) == pytest.approx(last.score)
    assert model.graph.nonzero == last.nonzero and model.provenance["accuracy"] == pytest.approx(last.score)
