"""Check values: what shows that a sum is not that of its clients' values, to whoever holds the key."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ..errors import TamperedError
from .keys import Key
from .scheme import CHECKS

__all__ = ["Checks", "tampered"]


class Checks:
    """Check values of one sum's ciphertexts.

    Args:
        key: the clients' key.
        context: as in :func:`.sealing.encrypt`.
        round: the round.
        count: values in the sum.
    """

    def __init__(self, key: Key, context: bytes, round: int, count: int) -> None:
        self._t, self._values = key.scheme.plain_modulus, key.scheme.values
        self._given = key.checking + hashlib.sha256(context).digest() + struct.pack("<IQ", round, count)

    def of(self, block: int, values: NDArray[np.int64], clients: Iterable[int]) -> NDArray[np.int64]:
        """Return int64[CHECKS] for a ciphertext's values: their sums under secret weights, plus clients' numbers."""
        weights = self._draw(b"weights", block, 0, CHECKS * self._values).reshape(CHECKS, self._values)
        # A scheme's t and ring are such that these sums fit.
        checks: NDArray[np.int64] = (weights[:, : len(values)] * (values % self._t)).sum(axis=1) % self._t
        for client in clients:
            checks += self._draw(b"client", block, client, CHECKS)
        return checks % self._t

    def _draw(self, what: bytes, block: int, client: int, size: int) -> NDArray[np.int64]:
        """Return int64[size] modulo t that only the key's holders can know."""
        given = self._given + what + struct.pack("<II", block, client)
        drawn = np.frombuffer(hashlib.shake_256(given).digest(8 * size), "<u8")
        return (drawn % np.uint64(self._t)).astype(np.int64)


def tampered() -> TamperedError:
    """Return the error of a sum whose check values do not fit, in the same words for every fault."""
    return TamperedError(
        "encrypted message: it is not the sum of what its clients have encrypted, but was altered, or is of another"
        " context: stop, and make a new key"
    )
