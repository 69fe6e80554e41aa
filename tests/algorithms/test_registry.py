"""Naming a method in a configuration: what is built, and one clear sentence for what cannot be."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsparsify.algorithms import METHODS, build
from fedsparsify.errors import ArgumentError, ConfigError
from fedsparsify.layout import ParameterLayout, Slot
from fedsparsify.merge import majority_of
from fedsparsify.purge import make_purge
from fedsparsify.state import ModelState

LAYOUT = ParameterLayout((Slot("weight", (2, 2), 0),))
INGREDIENTS: dict[str, Any] = {
    "schedule": lambda t: 0.5,
    "purge": make_purge(LAYOUT),
    "select": make_purge(LAYOUT),
    "merge": majority_of,
    "layout": LAYOUT,
    "sparsity": 0.5,
    "rounds": 4,
    "seed": 1,
}

MINE = """
from dataclasses import replace
from fedsparsify.algorithms.fedavg import fedavg
from fedsparsify.errors import ArgumentError

def halved(sparsity, seed, factor=2.0):
    return replace(fedavg(), name=f"{sparsity / factor} {seed}")
def anything(**options):
    return replace(fedavg(), name=repr(options))
def needs(what):
    return fedavg()
def nothing():
    return None
def fails(rounds):
    return rounds / 0
def refuses():
    raise ArgumentError("method.factor = 3 must be less")
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a fresh name in the current directory; returns the name."""
    name = f"mine_{os.urandom(4).hex()}"
    (tmp_path / f"{name}.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


@pytest.mark.parametrize("name", METHODS)
def test_every_named_method_can_be_built_without_options(name: str) -> None:
    assert build(name, INGREDIENTS, {}).name == name


def test_a_mistyped_name_gets_the_nearest_one() -> None:
    with pytest.raises(
        ConfigError, match=r'^method\.name = "fedprx" is unknown; did you mean fedprox\?; known are '
    ) as e:
        build("fedprx", INGREDIENTS, {})
    assert all(name in str(e.value) for name in METHODS) and '"module:function"' in str(e.value)


@pytest.mark.parametrize("name", ["", "zzz"])
def test_another_name_gets_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=rf'^method\.name = "{name}" is unknown; known are .*fedavg, '):
        build(name, INGREDIENTS, {})


def test_a_mistyped_option_gets_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"^method\.proximl is no option of fedprox; did you mean proximal\?"):
        build("fedprox", INGREDIENTS, {"proximl": 0.1})


def test_a_method_without_options_says_so() -> None:
    with pytest.raises(ConfigError, match=r"^method\.proximal is no option of fedavg; it has none$"):
        build("fedavg", INGREDIENTS, {"proximal": 0.1})


@pytest.mark.parametrize("option", INGREDIENTS)
def test_what_the_run_gives_is_no_option(option: str) -> None:
    for name in METHODS:
        with pytest.raises(ConfigError, match=rf"^method\.{option} is no option of {name}"):
            build(name, INGREDIENTS, {option: 0.5})


@pytest.mark.parametrize(
    ("name", "option", "value", "wanted"),
    [
        ("fedprox", "proximal", "x", "a number, such as 0.01"),
        ("fedprox", "proximal", True, "a number"),
        ("fedprox", "proximal", [0.1], "a number"),
        ("fedavg-momentum", "momentum", None, "a number"),
        ("snip", "clients", 3, "a text in quotes, such as 'one'"),
        ("snip", "batches", 1.5, "a whole number, such as 1"),
        ("oneshot-finetune", "round", "2", "a whole number, such as 0"),
        ("prunefl", "every", False, "a whole number"),
        ("feddst", "min_votes", 1.0, "a whole number"),
        ("flash", "ratio", "half", "a number"),
    ],
)
def test_an_option_of_another_type_is_refused(name: str, option: str, value: object, wanted: str) -> None:
    with pytest.raises(ConfigError, match=rf"^method\.{option} = .* must be {wanted}"):
        build(name, INGREDIENTS, {option: value})


def test_a_whole_number_will_do_for_a_number() -> None:
    assert build("fedprox", INGREDIENTS, {"proximal": 1}).name == "fedprox"


def test_a_users_function_gets_the_ingredients_it_has_parameters_for_and_its_options(mine: str) -> None:
    assert build(f"{mine}:halved", INGREDIENTS, {}).name == "0.25 1"
    assert build(f"{mine}:halved", INGREDIENTS, {"factor": 4}).name == "0.125 1"
    assert build(f"{mine}:anything", INGREDIENTS, {"depth": 2}).name == "{'depth': 2}"


def test_a_users_method_works_like_any_other(mine: str) -> None:
    class Idle:
        def tune(self, model: ModelState) -> ModelState:
            return model

    model = ModelState(np.ones(4, np.float32), np.ones(4, np.bool_), np.zeros(0, np.float32))
    assert build(f"{mine}:halved", INGREDIENTS, {}).client_update(model, 1, Idle()) is model  # type: ignore[arg-type]


def test_a_users_options_are_checked_like_ours(mine: str) -> None:
    with pytest.raises(ConfigError, match=rf"^method\.facto is no option of {mine}:halved; did you mean factor\?"):
        build(f"{mine}:halved", INGREDIENTS, {"facto": 4})
    with pytest.raises(ConfigError, match=r"^method\.factor = 'x' must be a number"):
        build(f"{mine}:halved", INGREDIENTS, {"factor": "x"})
    with pytest.raises(ConfigError, match=rf'^method\.name = "{mine}:needs" cannot be built .*what'):
        build(f"{mine}:needs", INGREDIENTS, {})


def test_a_users_function_that_returns_no_method_is_refused(mine: str) -> None:
    with pytest.raises(
        ConfigError, match=rf'^method\.name = "{mine}:nothing" returned a NoneType; it must return a fed'
    ):
        build(f"{mine}:nothing", INGREDIENTS, {})


def test_what_a_users_function_raises_is_reported_with_file_and_line(mine: str) -> None:
    with pytest.raises(
        ConfigError, match=rf'^method\.name = "{mine}:fails" failed with ZeroDivisionError: .*, line 15'
    ):
        build(f"{mine}:fails", INGREDIENTS, {})


def test_our_own_errors_pass_through_a_users_function(mine: str) -> None:
    with pytest.raises(ArgumentError, match=r"^method\.factor = 3 must be less$"):
        build(f"{mine}:refuses", INGREDIENTS, {})


def test_a_users_function_that_is_missing_is_refused(mine: str) -> None:
    with pytest.raises(ConfigError, match=r"^method\.name = .* has no halvd; did you mean halved\?"):
        build(f"{mine}:halvd", INGREDIENTS, {})
    with pytest.raises(ConfigError, match=r'^method\.name = "nowhere_x:f": no module named nowhere_x'):
        build("nowhere_x:f", INGREDIENTS, {})


def test_a_function_whose_parameters_are_unknown_is_refused_like_any_that_returns_no_method() -> None:
    with pytest.raises(ConfigError, match=r'^method\.name = "builtins:dict" returned a dict'):
        build("builtins:dict", INGREDIENTS, {})
