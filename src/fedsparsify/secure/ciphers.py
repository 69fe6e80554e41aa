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
from .messages import Adder, forwards_seeds, upload_size
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
        upload: parameters and a number of values -> bytes of the largest upload of so many.
        prepare: parameters and the number of participants -> nothing; raises where the server lacks what it adds with.
    """

    scheme: Callable[[int], AnyScheme]
    make_key: Callable[[Any], Key]
    encrypt: Encrypt
    decrypt: Decrypt
    adder: Callable[..., AnyAdder]
    upload: Callable[[Any, int], int]
    prepare: Callable[[Any, int], None]


def _ckks_scheme(participants: int) -> AnyScheme:
    Scheme.of(participants)  # refuses as many as BFV does
    return CkksScheme()


def _prepare_bfv(scheme: Scheme, participants: int) -> None:
    if not forwards_seeds(scheme, participants):
        sealing.expand(scheme, b"")


def _prepare_ckks(scheme: CkksScheme, participants: int) -> None:
    ckks.CkksAdder(scheme, round=0, count=0)  # there is no other way to add


CIPHERS: dict[str, Cipher] = {
    "bfv": Cipher(
        scheme=Scheme.of,
        make_key=sealing.make_key,
        encrypt=sealing.encrypt,
        decrypt=sealing.decrypt,
        adder=partial(Adder, expand=sealing.expand),
        upload=upload_size,
        prepare=_prepare_bfv,
    ),
    "ckks": Cipher(
        scheme=_ckks_scheme,
        make_key=ckks.make_key,
        encrypt=ckks.encrypt,
        decrypt=ckks.decrypt,
        adder=ckks.CkksAdder,
        upload=ckks.upload_size,
        prepare=_prepare_ckks,
    ),
}
