"""The clients' common key, and its file. The server has no business with either."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import ArgumentError, DataError
from ..files import new_private_file
from .messages import pack, unpack
from .scheme import AnyScheme, CkksScheme, Scheme

__all__ = ["Key"]

_MAGIC = b"FSK1"
_HEAD = struct.Struct("<4sBBBB")
_BFV, _CKKS = 0, 1
_CHECKING = 32
_DIGEST = 32


@dataclass(frozen=True, repr=False)
class Key:
    """What encrypts, decrypts and checks.

    Attributes:
        scheme: parameters that it is made for.
        secret: the encryption library's secret polynomial, packed; of CKKS, TenSEAL's context.
        checking: 32 bytes that check values' weights come from.
        identifier: 8 bytes that tell keys apart, and nothing about them.
    """

    scheme: AnyScheme
    secret: bytes = field(repr=False)
    checking: bytes = field(repr=False)

    def __repr__(self) -> str:  # a key must not end up in a log
        return f"Key({self.scheme}, identifier={self.identifier.hex()})"

    @property
    def identifier(self) -> bytes:
        """8 bytes that tell keys apart, and nothing about them."""
        return hashlib.sha256(b"fedsparsify key identifier" + self.checking + self.secret).digest()[:8]

    def save(self, path: Path) -> None:
        """Write the key into a new file that only its owner can read.

        Raises:
            ArgumentError: there is such a file already, or it cannot be written.
        """
        s = self.scheme
        kind = (s.modulus_bits, s.plain_bits, _BFV) if isinstance(s, Scheme) else (0, 0, _CKKS)
        body = _HEAD.pack(_MAGIC, s.ring.bit_length() - 1, *kind) + self.checking + self.secret
        try:
            new_private_file(path, body + hashlib.sha256(body).digest())
        except FileExistsError:
            raise ArgumentError(
                f"{path} is there already: a key is never overwritten, for what it has encrypted would be lost"
            ) from None
        except OSError as error:
            raise ArgumentError(f"{path} cannot be written ({error.strerror})") from error

    @classmethod
    def load(cls, path: Path, *, retired: bool = False) -> Key:
        """Read a key's file.

        Args:
            path: the file.
            retired: read a key too that must not be used for sums any more, see :meth:`retire`.

        Raises:
            DataError: it is missing, damaged, no key, can be read by others than its owner, or is retired.
        """
        key = cls._read(path)
        if not retired and key.identifier.hex() in _retired(path):
            raise DataError(
                f"{path}: with this key a sum was refused ({_mark(path).name} says so), so it must not be used again:"
                " make a new key, and find out who altered the sum"
            )
        return key

    @classmethod
    def _read(cls, path: Path) -> Key:
        try:
            with open(path, "rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                data = file.read(1 << 20)
        except OSError as error:
            raise DataError(f"{path}: the key cannot be read ({error.strerror})") from error
        if len(data) < _HEAD.size or data[:4] != _MAGIC:
            raise DataError(f"{path} is no key of FedSparsify's")
        if stat.S_IMODE(mode) & 0o077:
            raise DataError(
                f"{path} can be read by others than its owner: chmod 600 it, and make a new key if it was read"
            )
        _, ring, modulus, plain, kind = _HEAD.unpack_from(data)
        if kind not in (_BFV, _CKKS):
            raise DataError(f"{path}: the key is of a later version of FedSparsify: install that")
        try:
            scheme = Scheme(1 << ring if ring < 32 else 0, modulus, plain) if kind == _BFV else None
        except ArgumentError as error:
            raise DataError(f"{path}: {error}") from error
        size = len(data) - _HEAD.size - _CHECKING - _DIGEST
        if size < 0 or (scheme is not None and size != scheme.ring * scheme.modulus_bits // 8):
            raise DataError(f"{path}: the key is cut off or too long: restore it")
        if hashlib.sha256(data[:-_DIGEST]).digest() != data[-_DIGEST:]:
            raise DataError(f"{path}: the key is damaged: restore it")
        checking, secret = data[_HEAD.size :][:_CHECKING], data[_HEAD.size + _CHECKING : -_DIGEST]
        if scheme is None:
            return cls(CkksScheme(), secret, checking)
        if int(unpack(secret, scheme.modulus_bits, scheme.ring).max()) >= scheme.modulus:
            raise DataError(f"{path}: the key is of no use with its own parameters: restore it")
        return cls(scheme, secret, checking)

    def retire(self, path: Path) -> None:
        """Note beside the key's file that :meth:`load` must refuse this key: a sum was altered.

        Raises:
            DataError: the folder cannot be written.
        """
        try:
            with open(_mark(path), "a", encoding="ascii") as file:
                file.write(f"{self.identifier.hex()}\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(f"{path}: it cannot be marked as refused ({error.strerror}): remove the key") from error

    @classmethod
    def of(cls, scheme: Scheme, polynomial: np.ndarray, checking: bytes) -> Key:
        """Make a key from the library's secret polynomial, uint64[N] modulo q."""
        return cls(scheme, pack(polynomial, scheme.modulus_bits), checking)


def _mark(path: Path) -> Path:
    return path.with_name(path.name + ".refused")


def _retired(path: Path) -> list[str]:
    """Return the identifiers of the keys that were refused in this place."""
    try:
        return _mark(path).read_text(encoding="ascii", errors="replace").split()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(
            f"{_mark(path)} cannot be read ({error.strerror}): it may say that the key is refused"
        ) from error
