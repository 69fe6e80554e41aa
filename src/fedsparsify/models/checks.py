"""Checks of the sizes that a network is built from."""

from __future__ import annotations

from ..errors import ArgumentError

__all__ = ["check_sizes"]


def check_sizes(**sizes: int) -> None:
    """Refuse a size that is no whole number from 1.

    Raises:
        ArgumentError: naming the first such size.
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ArgumentError(f"model.{name} = {size!r} must be a whole number of at least 1")
