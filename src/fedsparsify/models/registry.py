"""The networks that can be named in a configuration, and how one is built from a seed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..plugins import call, check_options, nearest, resolve
from ..randomness import derive_seed
from .cnn6 import cnn6
from .fc2 import fc2

__all__ = ["MODELS", "build", "build_from"]

# Layers draw from PyTorch's global generator; two threads that build at once would share one stream.
_building = threading.RLock()


def build(name: str, seed: int, **options: Any) -> nn.Module:
    """Build a named network with initial weights that depend on the seed only.

    Args:
        name: a key of :data:`MODELS`, or ``module:function`` for a user's function (or class) that returns a module;
            the current directory is importable.
        seed: the run's seed.
        options: keyword arguments of the function, e.g. ``hidden=64``.

    Raises:
        ConfigError: the name or an option is unknown, a required option is missing, or the user's function fails or
            returns no module.
        ArgumentError: an option is out of its range.

    >>> sum(p.numel() for p in build("2-fc", seed=1).parameters())
    118282
    """
    here = f'model.name = "{name}"'
    if name in MODELS:
        factory = MODELS[name]
    elif ":" in name:
        factory = resolve(name, "model.name")
    else:
        raise ConfigError(
            f"{here} is unknown{nearest(name, MODELS)}; known are {', '.join(MODELS)}, or name your own function as "
            '"module:function"'
        )
    check_options(factory, "model", name, options)
    return build_from(lambda: call(factory, here, **options), seed)


def build_from(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a network on the CPU, with PyTorch's generator seeded for it and restored afterwards.

    A factory that draws from other generators (NumPy's, Python's) must seed them itself.

    Args:
        factory: returns a new module.
        seed: the run's seed.

    Raises:
        ConfigError: the factory returns something else than a module.
    """
    # The CPU generator only: torch.manual_seed would also reseed accelerators, which nothing here restores.
    with _building, torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(derive_seed(seed, "initial weights"))
        module = factory()
    if not isinstance(module, nn.Module):
        raise ConfigError(f"the model's function returned a {type(module).__name__}; it must return a torch.nn.Module")
    return module


MODELS: dict[str, Callable[..., nn.Module]] = {
    "2-fc": fc2,
    "6-cnn": cnn6,
}
"""Factory of each named network."""
