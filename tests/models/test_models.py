"""The paper's networks: size, shape, initial weights, and how they are built from a seed."""

from __future__ import annotations

import itertools
import math
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fedsparsify.errors import ArgumentError, ConfigError
from fedsparsify.models import MODELS, build, build_from

INPUT_SHAPES = {"2-fc": (1, 28, 28), "6-cnn": (3, 32, 32)}


def _bits(module: nn.Module) -> bytes:
    return b"".join(t.numpy().tobytes() for t in module.state_dict().values())


@pytest.mark.parametrize(("name", "parameters"), [("2-fc", 118_282), ("6-cnn", 1_609_930)])
def test_the_number_of_trainable_parameters_is_the_papers(name: str, parameters: int) -> None:
    assert sum(p.numel() for p in build(name, seed=1).parameters() if p.requires_grad) == parameters


@pytest.mark.parametrize("name", MODELS)
def test_pictures_go_in_and_one_score_a_class_comes_out(name: str) -> None:
    assert build(name, seed=1)(torch.zeros(4, *INPUT_SHAPES[name])).shape == (4, 10)


def test_sizes_are_options() -> None:
    assert build("2-fc", seed=1, inputs=64, classes=3, hidden=16)(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert build("6-cnn", seed=1, channels=1, size=28, classes=7)(torch.zeros(2, 1, 28, 28)).shape == (2, 7)


@pytest.mark.parametrize("name", MODELS)
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
    layers = [m for m in build(name, seed=3).modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert layers
    for layer in layers:
        weight = layer.weight.detach()
        positions = math.prod(weight.shape[2:])
        bound = math.sqrt(6 / ((weight.shape[0] + weight.shape[1]) * positions))
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.98 * bound, "uniform weights come close to their bound"
        assert abs(weight.std().item() / (bound / math.sqrt(3)) - 1) < 0.06
        assert layer.bias is not None and not layer.bias.detach().any()


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
        ("resnet", {}, "is unknown; known are 2-fc, 6-cnn"),
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
        ("2-fc", {"classes": 2.5}, r"model\.classes = 2\.5 must be a whole number"),
        ("6-cnn", {"size": 7}, r"model\.size = 7 must be at least 8 pixels"),
    ],
)
def test_sizes_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        build(name, seed=1, **options)
