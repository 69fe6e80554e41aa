"""The error tree: one root, the one drawn in the docstring, and caught as users expect."""

from __future__ import annotations

import re

import pytest

from fedsparsify import errors
from fedsparsify.errors import ArgumentError, FedSparsifyError, MissingExtraError

ALL: list[type[BaseException]] = [getattr(errors, name) for name in errors.__all__]


def drawn_tree() -> dict[str, set[str]]:
    """Read the drawing: name -> its bases, the parent first, then those in brackets."""
    assert errors.__doc__ is not None
    bases: dict[str, set[str]] = {}
    above: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"    ([ |`-]*)([A-Z]\w+)(?: \(also (\w+)\))?(?:  |$)", line)
        if not found:
            continue
        depth = len(found[1])
        while above and above[-1][0] >= depth:
            above.pop()
        bases[found[2]] = {above[-1][1] if above else "Exception"} | ({found[3]} if found[3] else set())
        above.append((depth, found[2]))
    return bases


def test_the_drawn_tree_is_the_real_one() -> None:
    assert drawn_tree() == {error.__name__: {base.__name__ for base in error.__bases__} for error in ALL}


def test_every_error_is_one_of_ours_and_says_what_it_is_for() -> None:
    defined = {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert defined == set(errors.__all__)
    for error in ALL:
        assert issubclass(error, FedSparsifyError)
        assert error.__doc__


def test_a_bad_argument_is_a_value_error_to_those_who_do_not_know_us() -> None:
    with pytest.raises(ValueError, match="lr = -1 must be more than 0"):
        raise ArgumentError("lr = -1 must be more than 0")


def test_a_missing_extra_prints_the_line_that_installs_it() -> None:
    with pytest.raises(ImportError) as caught:
        raise MissingExtraError("TensorBoard logging", "tensorboard")
    assert (
        str(caught.value) == "TensorBoard logging needs an optional dependency: pip install 'fedsparsify[tensorboard]'"
    )
