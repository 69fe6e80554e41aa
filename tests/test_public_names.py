"""The names and signatures that others rely on (design.md, section 3). That ``__all__`` is kept: test_architecture."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest

import fedsparsify
from fedsparsify import merge, purge, schedules, state

NONE = inspect.Parameter.empty

# Function -> its parameters and their defaults, in order.
CONTRACT: dict[Callable[..., Any], dict[str, Any]] = {
    schedules.PolynomialSchedule: {
        "initial": NONE, "final": NONE, "start_round": NONE, "total_rounds": NONE, "frequency": 1, "exponent": 3,
    },
    schedules.PolynomialSchedule.__call__: {"self": NONE, "t": NONE},
    purge.magnitude_mask: {"weights": NONE, "sparsity": NONE, "mask": None},
    merge.weighted_average: {"weights": NONE, "num_examples": NONE},
    merge.nonzero_average: {"weights": NONE, "masks": NONE, "num_examples": NONE},
    merge.majority_vote: {"weights": NONE, "masks": NONE, "num_examples": NONE},
}  # fmt: skip


@pytest.mark.parametrize(("function", "wanted"), CONTRACT.items(), ids=lambda item: getattr(item, "__qualname__", ""))
def test_a_public_function_takes_what_the_contract_says(function: Callable[..., Any], wanted: dict[str, Any]) -> None:
    parameters = inspect.signature(function).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == wanted
    assert list(parameters) == list(wanted)
    assert {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


def test_public_functions_return_what_the_contract_says() -> None:
    weights = [np.ones(4, np.float32)] * 2
    masks = [np.ones(4, np.bool_)] * 2
    assert isinstance(schedules.PolynomialSchedule(0.0, 0.9, 1, 4)(2), float)
    mask = purge.magnitude_mask(weights[0], 0.5)
    voted, kept = merge.majority_vote(weights, masks, [1, 2])
    averages = [merge.weighted_average(weights, [1, 2]), merge.nonzero_average(weights, masks, [1, 2]), voted]
    assert [(w.dtype.name, w.shape) for w in averages] == [("float32", (4,))] * 3
    assert [(m.dtype.name, m.shape) for m in (mask, kept)] == [("bool", (4,))] * 2


@pytest.mark.parametrize(
    ("record", "names"),
    [
        (state.ClientUpdate, ["client", "round", "model", "num_examples", "metrics", "vectors"]),
        (state.ServerState, ["round", "model", "memory"]),
    ],
)
def test_records_that_travel_are_frozen_and_have_these_fields(record: type, names: list[str]) -> None:
    assert is_dataclass(record)
    assert [field.name for field in fields(record)] == names
    assert record.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_the_sparsity_of_a_model_is_that_of_its_mask() -> None:
    mask = np.array([True, False, False, False])
    model = state.ModelState(np.zeros(4, np.float32), mask, np.zeros(0, np.float32))
    assert model.nonzero == 1
    assert model.sparsity == 0.75


def test_the_package_offers_its_names_lazily_from_where_they_are_defined() -> None:
    for name in fedsparsify.__all__:
        found = getattr(fedsparsify, name)
        if name != "__version__":
            assert getattr(importlib.import_module(found.__module__), name) is found
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fedsparsify.nothing  # noqa: B018
