"""The paper's networks: size, shape, initial weights, and how they are built from a seed."""

from __future__ import annotations

import itertools
import math
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedsparsify.data import Dataset
from fedsparsify.errors import ArgumentError, ConfigError
from fedsparsify.models import MODELS, build, build_from
from fedsparsify.models.resnet20 import Residual
from fedsparsify.state import ModelState
from fedsparsify.tune_settings import TuneSettings
from fedsparsify.tune_torch import TorchTrainer

# Each network as its domain has it: options, shape of an example, outputs, parameters.
NETWORKS: dict[str, tuple[dict[str, int], tuple[int, ...], int, int]] = {
    "2-fc": ({}, (1, 28, 28), 10, 118_282),
    "6-cnn": ({}, (3, 32, 32), 10, 1_609_930),
    "resnet-20": ({}, (3, 32, 32), 10, 269_722),
    "vgg-16": ({}, (3, 32, 32), 100, 14_774_436),
    "lstm": ({}, (200,), 2, 3_397_761),
    "3d-cnn": ({}, (1, 32, 40, 64), 1, 2_950_401),
}
CHAINS = ("2-fc", "6-cnn", "vgg-16", "3d-cnn")


def _bits(module: nn.Module) -> bytes:
    return b"".join(t.numpy().tobytes() for t in module.state_dict().values())


@pytest.mark.parametrize("name", MODELS)
def test_the_number_of_trainable_parameters_is_the_papers(name: str) -> None:
    assert sum(p.numel() for p in build(name, seed=1).parameters() if p.requires_grad) == NETWORKS[name][3]


@pytest.mark.parametrize("name", MODELS)
def test_examples_go_in_and_one_score_a_class_comes_out(name: str) -> None:
    options, shape, outputs, _ = NETWORKS[name]
    assert build(name, seed=1, **options)(torch.zeros(4, *shape)).shape == (4, outputs)


def test_sizes_are_options() -> None:
    assert build("2-fc", seed=1, inputs=64, classes=3, hidden=16)(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert build("6-cnn", seed=1, channels=1, size=28, classes=7)(torch.zeros(2, 1, 28, 28)).shape == (2, 7)
    assert build("resnet-20", seed=1, channels=1, classes=7)(torch.zeros(2, 1, 28, 28)).shape == (2, 7)
    assert build("vgg-16", seed=1, channels=1, size=64, classes=7)(torch.zeros(2, 1, 64, 64)).shape == (2, 7)
    small = build("lstm", seed=1, vocabulary=9, embedding=3, hidden=2, classes=4)
    assert small(torch.tensor([[0.0, 8.0, 1.0]])).shape == (1, 4)
    assert build("3d-cnn", seed=1, outputs=2, width=4, pools=3)(torch.zeros(2, 1, 16, 16, 16)).shape == (2, 2)


def test_two_classes_of_the_lstm_are_told_apart_by_one_output() -> None:
    """Cross-entropy over (0, z) is the binary cross-entropy of the paper's one output z."""
    network = build("lstm", seed=1, vocabulary=9, embedding=3, hidden=2)
    scores, y = network(torch.tensor([[0.0, 8.0, 1.0], [2.0, 3.0, 4.0]])), torch.tensor([1, 0])
    assert scores[:, 0].tolist() == [0, 0]
    binary = nn.functional.binary_cross_entropy_with_logits(scores[:, 1], y.float())
    torch.testing.assert_close(nn.functional.cross_entropy(scores, y), binary)


def test_the_lstm_reads_both_ends_and_starts_small() -> None:
    network: Any = build("lstm", seed=1, vocabulary=99, spread=0.2)
    words = torch.arange(1.0, 51.0)[None]
    for end in (0, -1):
        changed = words.clone()
        changed[0, end] = 77
        assert not torch.equal(network(words), network(changed))
    vectors = network.embedding.weight.detach().abs()
    assert 0.19 < vectors.max() <= 0.2
    for name, parameter in network.lstm.named_parameters():
        assert parameter.requires_grad != name.startswith("bias_hh")
        assert name.startswith("weight") == bool(parameter.detach().any())


def test_the_lstm_trains_in_the_flat_trainer_without_its_second_biases() -> None:
    network = build("lstm", seed=1, vocabulary=9, embedding=3, hidden=2)
    rng = np.random.default_rng(1)
    data = Dataset(rng.integers(0, 9, (8, 5)).astype(np.float32), rng.integers(0, 2, 8), ("a", "b"))
    trainer = TorchTrainer(network, TuneSettings(lr=0.5, device="cpu"))
    w, buffers = trainer.layout.read(network)
    mask = rng.random(w.size) < 0.5
    start = ModelState(w * mask, mask, buffers)
    trained, _ = trainer.train(start, [(data, np.arange(8))] * 20, seed=1)
    assert not trained.w[~mask].any() and (trained.w[mask] != w[mask]).mean() > 0.7
    assert not any(p.any() for name, p in network.named_parameters() if "bias_hh" in name)


def test_a_residual_block_passes_what_its_convolutions_leave_out() -> None:
    block = Residual(2, 4, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    out = block(x)
    assert out.shape == (1, 4, 2, 2)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2]) and not out[:, [0, 3]].detach().any()


@pytest.mark.parametrize("name", CHAINS)
def test_a_trace_is_a_plain_chain_of_standard_modules(name: str) -> None:
    """The native trainer reads the trace: each node takes the one before it, and is a module of torch.nn."""
    network = build(name, seed=1)
    nodes = list(torch.fx.symbolic_trace(network).graph.nodes)
    assert [node.op for node in nodes] == ["placeholder", *["call_module"] * (len(nodes) - 2), "output"]
    for before, node in itertools.pairwise(nodes):
        assert node.all_input_nodes == [before]
        if node.op == "call_module":
            assert type(network.get_submodule(node.target)).__module__.startswith("torch.nn.modules")


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_glorot_uniform_and_biases_zero(name: str) -> None:
    layers = [m for m in build(name, seed=3).modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.Conv3d))]
    assert layers
    for layer in layers:
        weight = layer.weight.detach()
        positions = math.prod(weight.shape[2:])
        bound = math.sqrt(6 / ((weight.shape[0] + weight.shape[1]) * positions))
        assert weight.abs().max() <= bound
        if weight.numel() > 400:
            assert weight.abs().max() > 0.98 * bound, "uniform weights come close to their bound"
            assert abs(weight.std().item() / (bound / math.sqrt(3)) - 1) < 0.1
        assert layer.bias is None or not layer.bias.detach().any()


def test_batch_normalisation_follows_the_first_two_pools_only_and_starts_as_identity() -> None:
    network = build("6-cnn", seed=1)
    layers = list(network.children())
    followers = [layers[i + 1] for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    assert [type(layer) for layer in followers] == [nn.BatchNorm2d, nn.BatchNorm2d, nn.Flatten]
    for layer in followers[:2]:
        assert isinstance(layer, nn.BatchNorm2d)
        assert bool((layer.weight == 1).all()) and not layer.bias.detach().any()


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_decides_every_bit_whatever_the_global_generator_holds(name: str) -> None:
    first = _bits(build(name, seed=5))
    torch.rand(7)
    assert _bits(build(name, seed=5)) == first
    assert _bits(build(name, seed=6)) != first


def test_the_global_generator_is_left_as_it_was() -> None:
    before = torch.random.get_rng_state()
    build("2-fc", seed=5)
    with pytest.raises(ZeroDivisionError):
        build_from(lambda: nn.Linear(1 // 0, 1), seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_threads_that_build_at_once_get_the_same_bits() -> None:
    alone = _bits(build("2-fc", seed=5))
    built: list[bytes] = []
    threads = [threading.Thread(target=lambda: built.append(_bits(build("2-fc", seed=5)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [alone] * 8


@pytest.fixture
def users_module(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], str]:
    def make(function: Any) -> str:
        module = types.ModuleType("users_nets")
        module.net = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "users_nets", module)
        return "users_nets:net"

    return make


def test_a_users_class_is_built_from_the_seed_with_its_options(users_module: Callable[[Any], str]) -> None:
    class Mine(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.layer = nn.Linear(width, 2)

    name = users_module(Mine)
    assert _bits(build(name, seed=1, width=3)) == _bits(build_from(lambda: Mine(3), seed=1))
    with pytest.raises(ConfigError, match=r"model\.widht is no option of users_nets:net; did you mean width\?"):
        build(name, seed=1, widht=3)
    with pytest.raises(ConfigError, match=r'model\.name = "users_nets:net" cannot be built .* argument: .width.'):
        build(name, seed=1)


def test_a_users_function_may_take_any_option(users_module: Callable[[Any], str]) -> None:
    name = users_module(lambda **options: nn.Linear(options["a"], 1))
    assert isinstance(build(name, seed=1, a=3), nn.Linear)


def test_a_users_function_that_fails_or_returns_no_module_is_refused(users_module: Callable[[Any], str]) -> None:
    with pytest.raises(ConfigError, match=r"returned a list; it must return a torch\.nn\.Module"):
        build(users_module(list), seed=1)
    with pytest.raises(ConfigError, match=r'"users_nets:net" failed with ZeroDivisionError: .* line \d+'):
        build(users_module(lambda: nn.Linear(1 // 0, 1)), seed=1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("2fc", {}, r'model\.name = "2fc" is unknown; did you mean 2-fc\?; known are 2-fc, 6-cnn'),
        ("convnet", {}, "is unknown; known are 2-fc, 6-cnn"),
        (
            "2-fc",
            {"hiden": 3},
            r"model\.hiden is no option of 2-fc; did you mean hidden\?; it has inputs, classes, hidden",
        ),
        ("6-cnn", {"x": 3}, r"model\.x is no option of 6-cnn; it has channels, size, classes"),
    ],
)
def test_unknown_names_and_options_are_refused_with_the_nearest(
    name: str, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, seed=1, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("2-fc", {"hidden": 0}, r"model\.hidden = 0 must be a whole number of at least 1"),
        ("6-cnn", {"size": 7}, r"model\.size = 7 must be at least 8 pixels"),
        ("vgg-16", {"size": 31}, r"model\.size = 31 must be at least 32 pixels"),
        ("3d-cnn", {"pools": 6}, r"model\.pools = 6 must be at most 5"),
        ("lstm", {"spread": 0.0}, r"model\.spread = 0\.0 must be more than 0"),
    ],
)
def test_sizes_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        build(name, seed=1, **options)
