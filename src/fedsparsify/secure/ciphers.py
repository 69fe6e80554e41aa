"""The ways to encrypt that a configuration can name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import ckks, sealing
from .keys import Key
from .messages import Adder
from .scheme import AnyScheme, CkksScheme, Scheme

__all__ = ["CIPHERS", "AnyAdder", "Cipher"]


class AnyAdder(Protocol):
    """Adds up clients' messages, one at a time, without a key."""

    def take(self, client: int, data: bytes) -> None:
        """Add a client's message; where it is refused, the sum is as before.

        Raises:
            WireError: it is malformed, or not of this sum and client.
        """
        ...

    def sum(self) -> bytes:
        """Return the sum's message."""
        ...


class Encrypt(Protocol):
    """See :func:`.sealing.encrypt`."""

    def __call__(self, key: Key, values: NDArray[np.int64], *, client: int, round: int, context: bytes) -> bytes: ...


class Decrypt(Protocol):
    """See :func:`.sealing.decrypt`."""

    def __call__(
        self, key: Key, message: bytes, *, round: int, count: int, context: bytes, least: int = 2
    ) -> tuple[NDArray[np.int64], tuple[int, ...]]: ...


@dataclass(frozen=True)
class Cipher:
    """One way to encrypt: its functions.

    Attributes:
        scheme: most participants of a round -> parameters.
        make_key: parameters -> a new key.
        encrypt: what a client does with its integers.
        decrypt: what it does with a sum.
        adder: makes what the server adds with, given parameters, ``round``, ``count`` and the ``key``'s identifier.
    """

    scheme: Callable[[int], AnyScheme]
    make_key: Callable[[Any], Key]
    encrypt: Encrypt
    decrypt: Decrypt
    adder: Callable[..., AnyAdder]


def _ckks_scheme(participants: int) -> AnyScheme:
    Scheme.of(participants)  # refuses as many as BFV does
    return CkksScheme()


CIPHERS: dict[str, Cipher] = {
    "bfv": Cipher(Scheme.of, sealing.make_key, sealing.encrypt, sealing.decrypt, partial(Adder, expand=sealing.expand)),
    "ckks": Cipher(_ckks_scheme, ckks.make_key, ckks.encrypt, ckks.decrypt, ckks.CkksAdder),
}
