"""A package's ``__getattr__`` that imports its public names on first use, so that a light one does not load torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["on_first_use"]


def on_first_use(package: str, home: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's ``__getattr__``.

    Args:
        package: its name.
        home: public name -> the module of the package that has it.

    Returns:
        A function that raises AttributeError for every other name.

    >>> on_first_use("fedsparsify", {"PolynomialSchedule": "schedules"})("PolynomialSchedule").__name__
    'PolynomialSchedule'
    """

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f".{home[name]}", package), name)

    return get
