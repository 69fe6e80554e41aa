"""The door to the extension: everything else in the package asks here whether it is there."""

from __future__ import annotations

import importlib
from types import ModuleType

from ..errors import ArgumentError

__all__ = ["available", "require_native", "targets"]

try:
    _native: ModuleType | None = importlib.import_module("fedsparsify.sparse._native")
except ImportError:
    _native = None


def available() -> bool:
    """Whether the native kernels are built and can be loaded."""
    return _native is not None


def targets() -> tuple[str, ...]:
    """Instruction sets that this build has and this processor runs, best first; empty without the extension."""
    return tuple(_native.targets()) if _native is not None else ()


def require_native() -> ModuleType:
    """Return the extension.

    Raises:
        ArgumentError: it is not built.
    """
    if _native is None:
        raise ArgumentError(
            "the native sparse kernels are not built; install a C++ compiler and reinstall fedsparsify, "
            "or train with the dense torch backend"
        )
    return _native
