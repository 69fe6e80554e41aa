"""References to a user's code: what resolves, and one clear sentence for what does not."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from fedsparsify.errors import ArgumentError, ConfigError
from fedsparsify.plugins import call, nearest, resolve

MINE = """
import {missing}
class Nets:
    @staticmethod
    def small(width=1):
        return ("small", width)
def make():
    return 1 / 0
number = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a fresh name in the current directory; returns the name."""
    name = f"mine_{os.urandom(4).hex()}"
    (tmp_path / f"{name}.py").write_text(MINE.format(missing="math"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def test_a_function_of_a_module_in_the_current_directory_is_found(mine: str) -> None:
    assert resolve(f"{mine}:Nets.small", "model.name")(width=2) == ("small", 2)


@pytest.mark.parametrize("reference", ["mine", "mine:", ":make", "mine:a..b", "a..b:make"])
def test_a_malformed_reference_is_refused_with_the_form_wanted(reference: str) -> None:
    with pytest.raises(ConfigError, match=r'model\.name = ".*" must have the form "module:function"'):
        resolve(reference, "model.name")


def test_a_missing_module_is_named_with_where_it_was_looked_for(mine: str) -> None:
    with pytest.raises(ConfigError, match=r'data\.name = "nowhere_x:f": no module named nowhere_x in /?.+'):
        resolve("nowhere_x:f", "data.name")


def test_a_missing_function_is_refused_with_the_nearest_name(mine: str) -> None:
    with pytest.raises(ConfigError, match=r"has no mkae; did you mean make\?"):
        resolve(f"{mine}:mkae", "data.name")


def test_what_cannot_be_called_is_refused(mine: str) -> None:
    with pytest.raises(ConfigError, match="is a int; name a function"):
        resolve(f"{mine}:number", "data.name")


def test_an_import_that_the_users_module_lacks_is_told_apart_from_a_missing_module(mine: str) -> None:
    Path("other_user_module.py").write_text(MINE.format(missing="not_there"))
    with pytest.raises(ConfigError, match=r"importing other_user_module failed .*not_there.*module\.py, line 2"):
        resolve("other_user_module:make", "model.name")


def test_a_syntax_error_is_reported_with_file_and_line(mine: str) -> None:
    Path("broken_user_module.py").write_text("x = 1\ndef (:\n")
    with pytest.raises(ConfigError, match=r"SyntaxError: .*broken_user_module\.py, line 2"):
        resolve("broken_user_module:f", "model.name")


def test_an_exception_of_the_users_function_is_reported_with_file_and_line(mine: str) -> None:
    with pytest.raises(ConfigError, match=rf"here failed with ZeroDivisionError: .*{mine}\.py, line 8") as caught:
        call(resolve(f"{mine}:make", "data.name"), "here")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_our_own_errors_pass_through_a_users_function_unchanged() -> None:
    def refuse() -> None:
        raise ArgumentError("as it is")

    with pytest.raises(ArgumentError, match=r"^as it is$"):
        call(refuse, "here")


def test_nothing_is_suggested_where_nothing_is_alike() -> None:
    assert nearest("zzz", ["digits", "fashion-mnist"]) == ""
