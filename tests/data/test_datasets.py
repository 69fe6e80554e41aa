"""Data sets by name: ours, and a user's own function."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest

from fedsparsify.data import load
from fedsparsify.errors import ConfigError, DataError

PAIR = (np.zeros((4, 3)), np.array([0, 1, 0, 1]))


def _user_function(monkeypatch: pytest.MonkeyPatch, returns: Any) -> str:
    module = types.ModuleType("users_data")
    module.make = lambda: returns  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "users_data", module)
    return "users_data:make"


def test_a_users_function_gives_train_and_test(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = load(_user_function(monkeypatch, (PAIR, (PAIR[0][:2], PAIR[1][:2]))))
    assert (len(train), len(test), train.num_classes) == (4, 2, 2)


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        (None, r'data\.name = "users_data:make" returned a NoneType; it must return a pair \(train, test\)'),
        ((PAIR, PAIR, PAIR), "returned a tuple; it must return a pair"),
        ((PAIR, 3), "the test set of users_data:make is a int"),
        (((PAIR[0], PAIR[1][:3]), PAIR), "the training set of users_data:make has 4 inputs but 3 labels"),
        ((PAIR, (np.zeros((4, 2)), PAIR[1])), r"inputs of the training set .* \[3\], of the test set .* \[2\]"),
        ((PAIR, (PAIR[0], np.ones(4))), "labels of the training set are int64 .* of the test set float32"),
    ],
)
def test_a_wrong_return_is_refused(monkeypatch: pytest.MonkeyPatch, returns: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(_user_function(monkeypatch, returns))


def test_an_unknown_name_is_refused_with_the_nearest_and_all_known() -> None:
    with pytest.raises(ConfigError, match=r"did you mean fashion-mnist\?; known are adrenal-3d, brain-age"):
        load("fashionmnist")


def test_a_missing_function_is_refused_by_its_key() -> None:
    with pytest.raises(ConfigError, match=r'data\.name = "math:nothing": math has no nothing'):
        load("math:nothing")
