"""Randomness is an argument: every random choice has a generator of its own.

A generator is derived from (seed, purpose, round, client), so that no choice depends on how many others were made
before it, on which worker makes it, or on whether the run was resumed.
"""

from __future__ import annotations

import zlib

import numpy as np

__all__ = ["derive", "derive_seed"]


def _sequence(seed: int, purpose: str, round: int, client: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), round, client + 1])


def derive(seed: int, purpose: str, *, round: int = 0, client: int = -1) -> np.random.Generator:
    """Return the NumPy generator for one purpose; ``client=-1`` is the server.

    >>> derive(1, "batches", round=3, client=0).integers(100) == derive(1, "batches", round=3, client=0).integers(100)
    np.True_
    """
    return np.random.Generator(np.random.PCG64(_sequence(seed, purpose, round, client)))


def derive_seed(seed: int, purpose: str, *, round: int = 0, client: int = -1) -> int:
    """Return a 63-bit integer seed for generators that are not NumPy's (PyTorch, native code)."""
    return int(_sequence(seed, purpose, round, client).generate_state(1, np.uint64)[0] >> np.uint64(1))
