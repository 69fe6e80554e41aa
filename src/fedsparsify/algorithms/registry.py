"""The methods that can be named in a configuration, and how one is built."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ConfigError
from ..plugins import call, check_options, nearest, resolve
from .fedavg import fedavg
from .fedavg_momentum import fedavg_momentum
from .feddst import feddst
from .fedprox import fedprox
from .fedsparsify import fedsparsify_global, fedsparsify_local
from .flash import flash
from .grasp import grasp
from .method import Method
from .oneshot import oneshot, oneshot_finetune
from .prunefl import prunefl
from .random import random
from .snip import snip
from .ssfl import ssfl

__all__ = ["METHODS", "build"]

METHODS: dict[str, Callable[..., Method]] = {
    "fedavg": fedavg,
    "fedavg-momentum": fedavg_momentum,
    "feddst": feddst,
    "fedprox": fedprox,
    "fedsparsify-global": fedsparsify_global,
    "fedsparsify-local": fedsparsify_local,
    "flash": flash,
    "grasp": grasp,
    "oneshot": oneshot,
    "oneshot-finetune": oneshot_finetune,
    "prunefl": prunefl,
    "random": random,
    "snip": snip,
    "ssfl": ssfl,
}
"""Function that returns each named method; a new method is one line."""


def build(name: str, ingredients: Mapping[str, Any], options: Mapping[str, Any]) -> Method:
    """Build a named method.

    The method's function is given those ingredients that it has parameters for, by their names; what else it takes are
    options.

    Args:
        name: a key of :data:`METHODS`, or ``module:function`` for a user's function; the current directory is
            importable.
        ingredients: what a run has for every method: ``schedule``, ``purge``, ``select``, ``merge``, ``layout``,
            ``sparsity``, ``rounds`` and ``seed``.
        options: keyword arguments, e.g. ``proximal=0.1``.

    Raises:
        ConfigError: the name or an option is unknown, an option is of another type than its default, or the user's
            function fails or returns no method.
        ArgumentError: an option is out of its range.

    >>> build("fedprox", {}, {"proximal": 0.1}).name
    'fedprox'
    """
    here = f'method.name = "{name}"'
    if name in METHODS:
        function = METHODS[name]
    elif ":" in name:
        function = resolve(name, "method.name")
    else:
        raise ConfigError(
            f"{here} is unknown{nearest(name, METHODS)}; known are {', '.join(METHODS)}, or name your own function as"
            ' "module:function"'
        )
    parameters = inspect.signature(function).parameters
    given = {key: value for key, value in ingredients.items() if key in parameters}
    check_options(function, "method", name, options, given)
    method = call(function, here, **given, **options)
    if not isinstance(method, Method):
        raise ConfigError(f"{here} returned a {type(method).__name__}; it must return a fedsparsify.algorithms.Method")
    return method
