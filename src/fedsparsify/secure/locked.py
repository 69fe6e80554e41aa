"""What only the key's holders may read and nobody need add: a model on its way through the server.

AES-256 in Galois/Counter Mode by the library ``cryptography``, under a key that is derived from the clients' common
key. A locked content is 12 bytes of nonce, drawn anew each time, then what the library returns.
"""

from __future__ import annotations

import hashlib
import secrets
from functools import cache
from typing import Any

from ..errors import MissingExtraError, WireError
from .keys import Key

__all__ = ["digest", "lock", "unlock"]

_NONCE = 12
_TAG = 16


def lock(key: Key, content: bytes, about: bytes) -> bytes:
    """Return content that only the key's holders can read, 28 bytes longer.

    Args:
        key: the clients' key.
        content: any bytes.
        about: what the content belongs to; it is not kept, but must be the same for :func:`unlock`.
    """
    nonce = secrets.token_bytes(_NONCE)
    return nonce + bytes(_cipher(key).encrypt(nonce, content, about))


def unlock(key: Key, locked: bytes, about: bytes) -> bytes:
    """Return the content that was locked.

    Raises:
        WireError: it was locked with another key, is about something else, or was altered.
    """
    if len(locked) < _NONCE + _TAG:
        raise WireError(f"locked content: {len(locked)} bytes are fewer than the {_NONCE + _TAG} of an empty one")
    try:
        return bytes(_cipher(key).decrypt(locked[:_NONCE], locked[_NONCE:], about))
    except _library().InvalidTag as error:
        raise WireError("locked content: it was altered, is about something else, or needs another key") from error


def digest(key: Key, content: bytes) -> str:
    """Return 32 hexadecimal digits that the key's holders find for the same content; others cannot try guesses."""
    return hashlib.blake2b(content, digest_size=16, key=key.checking, person=b"digest").hexdigest()


def _cipher(key: Key) -> Any:
    derived = hashlib.blake2b(key.secret, digest_size=32, key=key.checking, person=b"lock").digest()
    return _library().AESGCM(derived)


class _Library:
    def __init__(self) -> None:
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise MissingExtraError("Encryption", "encryption") from error
        self.InvalidTag, self.AESGCM = InvalidTag, AESGCM


@cache
def _library() -> _Library:
    return _Library()
