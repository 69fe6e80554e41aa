"""A user's own function, named in a configuration as ``module:function``."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from .errors import ConfigError, FedSparsifyError

__all__ = ["call", "check_options", "describe", "nearest", "resolve"]


def resolve(reference: str, place: str) -> Callable[..., Any]:
    """Import the function (or class) that a reference names.

    The current directory is importable, as it is for ``python -m``: it stays first on ``sys.path``, because a user's
    module may import its neighbours later.

    Args:
        reference: ``package.module:function``; a dotted name after the colon reaches into a class.
        place: the configuration key that holds the reference, for messages, e.g. ``model.name``.

    Raises:
        ConfigError: the reference is malformed, its module is missing or cannot be imported, or what it names is
            missing or cannot be called.

    >>> resolve("math:hypot", "model.name")(3.0, 4.0)
    5.0
    """
    module_name, colon, attributes = reference.partition(":")
    here = f'{place} = "{reference}"'
    if not (colon and all(module_name.split(".")) and all(attributes.split("."))):
        raise ConfigError(f'{here} must have the form "module:function"')
    found: Any = _import(module_name, here)
    for name in attributes.split("."):
        if not hasattr(found, name):
            raise ConfigError(f"{here}: {module_name} has no {name}{nearest(name, dir(found))}")
        found = getattr(found, name)
    if not callable(found):
        raise ConfigError(f"{here} is a {type(found).__name__}; name a function or class that can be called")
    return found  # type: ignore[no-any-return]


def call(function: Callable[..., Any], here: str, **options: Any) -> Any:
    """Call a user's function; report what it raises as one sentence with its file and line.

    Args:
        function: what :func:`resolve` returned.
        here: how messages name it, e.g. ``data.name = "mine:load"``.
        options: keyword arguments for it.

    Raises:
        ConfigError: the function raised something that is not a :class:`~fedsparsify.errors.FedSparsifyError`; the
            original exception is its cause.
    """
    try:
        return function(**options)
    except FedSparsifyError:
        raise
    except Exception as error:
        raise ConfigError(f"{here} failed with {describe(error)}") from error


def check_options(
    function: Callable[..., Any],
    table: str,
    name: str,
    options: Mapping[str, Any],
    given: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Refuse options that a function does not take, or that have another type than its default.

    Args:
        function: what will be called with ``given`` and ``options``.
        table: of the configuration, for messages, e.g. ``model``.
        name: what the configuration calls the function.
        options: keyword arguments that the configuration gives.
        given: keyword arguments that it gets anyway.

    Raises:
        ConfigError: an option is unknown or of another type, or a required one is missing.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in callables have none; they judge their options themselves
        return
    known = {
        key: p
        for key, p in signature.parameters.items()
        if key not in given
        and p.kind not in _VARIADIC
        and (p.default is inspect.Parameter.empty or isinstance(p.default, _FROM_TOML))
    }
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    for option, value in options.items():
        if option not in known:
            if open_ended:
                continue
            hint = nearest(option, known)
            raise ConfigError(f"{table}.{option} is no option of {name}{hint}; it has {', '.join(known) or 'none'}")
        default = known[option].default
        if isinstance(default, (bool, int, float, str)) and not _is_like(value, default):
            raise ConfigError(f"{table}.{option} = {value!r} must be {_KINDS[type(default)]}, such as {default!r}")
    try:
        signature.bind(**given, **options)
    except TypeError as error:
        raise ConfigError(f'{table}.name = "{name}" cannot be built with the options given: {error}') from error


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
# A parameter whose default no configuration could give is for programs.
_FROM_TOML = (type(None), bool, int, float, str, list, tuple, dict)
_KINDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}


def _is_like(value: object, default: bool | int | float | str) -> bool:
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    return isinstance(value, (int, float) if isinstance(default, float) else type(default))


def describe(error: Exception) -> str:
    """Return an exception's type, text, file and line, for one-sentence messages about a user's code."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError):  # its text names file and line already, its last frame is the import system
        return text
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{text} ({frame.filename}, line {frame.lineno})"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean X?`` for the known name most like a mistyped one, or nothing.

    >>> nearest("hiden", ["classes", "hidden", "inputs"])
    '; did you mean hidden?'
    >>> nearest("hiden", ["classes"])
    ''
    """
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def _import(name: str, here: str) -> Any:
    directory = os.getcwd()
    if directory not in sys.path:
        sys.path.insert(0, directory)
    # A module written since the last import (a notebook, a test) is invisible to stale directory caches.
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except Exception as error:
        # A missing module that the user's module itself imports is another mistake than a wrong reference.
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{here}: no module named {error.name} in {directory} or among the installed packages"
            ) from error
        raise ConfigError(f"{here}: importing {name} failed with {describe(error)}") from error
