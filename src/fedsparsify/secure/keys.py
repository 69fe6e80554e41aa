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
from .messages import pack, unpack
from .scheme import Scheme

__all__ = ["Key"]

_MAGIC = b"FSK1"
_HEAD = struct.Struct("<4sBBBx")
_CHECKING = 32
_DIGEST = 32


@dataclass(frozen=True, repr=False)
class Key:
    """What encrypts, decrypts and checks.

    Attributes:
        scheme: parameters that it is made for.
        secret: the encryption library's secret polynomial, packed.
        checking: 32 bytes that check values' weights come from.
        identifier: 8 bytes that tell keys apart, and nothing about them.
    """

    scheme: Scheme
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
        body = _HEAD.pack(_MAGIC, s.ring.bit_length() - 1, s.modulus_bits, s.plain_bits) + self.checking + self.secret
        whole = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(body + hashlib.sha256(body).digest())
                file.flush()
                os.fsync(file.fileno())
            os.link(whole, path)  # the whole key or none, and never over another
        except FileExistsError:
            raise ArgumentError(
                f"{path} is there already: a key is never overwritten, for what it has encrypted would be lost"
            ) from None
        except OSError as error:
            raise ArgumentError(f"{path} cannot be written ({error.strerror})") from error
        finally:
            whole.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Key:
        """Read a key's file.

        Raises:
            DataError: it is missing, damaged, no key, or can be read by others than its owner.
        """
        try:
            with open(path, "rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                data = file.read(1 << 20)
        except OSError as error:
            raise DataError(f"{path}: the key cannot be read ({error.strerror})") from error
        if stat.S_IMODE(mode) & 0o077:
            raise DataError(
                f"{path} can be read by others than its owner: chmod 600 it, and make a new key if it was read"
            )
        if len(data) < _HEAD.size or data[:4] != _MAGIC:
            raise DataError(f"{path} is no key of FedSparsify's")
        _, ring, modulus, plain = _HEAD.unpack_from(data)
        try:
            scheme = Scheme(1 << ring if ring < 32 else 0, modulus, plain)
        except ArgumentError as error:
            raise DataError(f"{path}: {error}") from error
        size = scheme.ring * scheme.modulus_bits // 8
        if len(data) != _HEAD.size + _CHECKING + size + _DIGEST:
            raise DataError(f"{path}: the key is cut off or too long: restore it")
        if hashlib.sha256(data[:-_DIGEST]).digest() != data[-_DIGEST:]:
            raise DataError(f"{path}: the key is damaged: restore it")
        checking, secret = data[_HEAD.size :][:_CHECKING], data[_HEAD.size + _CHECKING : -_DIGEST]
        if int(unpack(secret, scheme.modulus_bits, scheme.ring).max()) >= scheme.modulus:
            raise DataError(f"{path}: the key is of no use with its own parameters: restore it")
        return cls(scheme, secret, checking)

    @classmethod
    def of(cls, scheme: Scheme, polynomial: np.ndarray, checking: bytes) -> Key:
        """Make a key from the library's secret polynomial, uint64[N] modulo q."""
        return cls(scheme, pack(polynomial, scheme.modulus_bits), checking)
