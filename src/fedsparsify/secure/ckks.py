"""CKKS, by TenSEAL's ordinary interface and parameters: what earlier work on encrypted federated learning used.

Cheon, Kim, Kim and Song, *Homomorphic Encryption for Arithmetic of Approximate Numbers*, ASIACRYPT 2017. Here it adds
the same integers as BFV does, as real numbers, at about seventeen times the bytes. It is for comparison.

A decrypted CKKS value at full precision carries the ciphertext's noise, and with it the secret key: who holds one
ciphertext and its full decryption finds the key by solving linear equations (Li and Micciancio, EUROCRYPT 2021; tried
with this library). So nothing but the nearest integers leaves :func:`decrypt`, and the noise is thousands of times
smaller than a half.

A message is "FSC1", the key's identifier (8 bytes), round, count and K (4 each), the K participants (4 each), then
for each block 4 bytes of length and TenSEAL's vector, and the CRC-32 of all before.
"""

from __future__ import annotations

import importlib
import secrets
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, MissingExtraError, WireError
from .checks import Checks, tampered
from .keys import Key
from .messages import check_due, check_least, check_sender, participants_in
from .scheme import CHECKS, CkksScheme

__all__ = ["CkksAdder", "decrypt", "encrypt", "make_key", "upload_size"]

_HEAD = struct.Struct("<4s8sIII")
_LENGTH = struct.Struct("<I")
_MODULI = [60, 40, 40]
_SCALE = 2.0**40

# TenSEAL's vectors take 235 kB; what claims more is not parsed.
_LARGEST_VECTOR = 300_000

# Further from an integer than this, a decrypted value is not a sum of integers.
_OFF = 0.25


def make_key(scheme: CkksScheme) -> Key:
    """Return a new key."""
    context = _new_context(scheme)
    secret = context.serialize(
        save_public_key=False, save_secret_key=True, save_galois_keys=False, save_relin_keys=False
    )
    return Key(scheme, secret, secrets.token_bytes(32))


def encrypt(key: Key, values: NDArray[np.int64], *, client: int, round: int, context: bytes) -> bytes:
    """Return an upload of integers; arguments and errors as :func:`.sealing.encrypt`."""
    scheme, ready = _scheme_of(key), _context_of(key)
    most = (scheme.plain_modulus - 1) // 2
    if values.dtype != np.int64 or values.ndim != 1 or np.any(np.abs(values) > most):
        raise ArgumentError(f"values must be int64[k] between -{most} and {most}")
    checks = Checks(key, context, round, values.size)
    padded = np.zeros(scheme.blocks(values.size) * scheme.values, np.int64)
    padded[: values.size] = values
    vectors = []
    for i, block in enumerate(padded.reshape(-1, scheme.values)):
        whole = np.concatenate([block, checks.of(i, block, [client])]).astype(np.float64)
        vectors.append(_library().ckks_vector(ready, whole.tolist()).serialize())
    return _write(key.identifier, round, values.size, (client,), vectors)


def decrypt(
    key: Key, message: bytes, *, round: int, count: int, context: bytes, least: int = 2
) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Return the sum int64[count] and who is in it; arguments and errors as :func:`.sealing.decrypt`."""
    scheme, ready = _scheme_of(key), _context_of(key)
    who, vectors = _read(message, key.identifier, round, count, scheme, scheme.participants)
    check_least(who, least)
    checks, t = Checks(key, context, round, count), scheme.plain_modulus
    values = np.zeros((len(vectors), scheme.values), np.int64)
    sound = True
    for i, data in enumerate(vectors):
        vector = _vector(ready, data)
        found = np.array(vector.decrypt(), np.float64)
        if found.shape != (scheme.values + CHECKS,) or not np.isfinite(found).all() or np.abs(found).max() > 2.0**60:
            sound = False
            continue
        whole = np.rint(found)
        sound &= bool(np.abs(found - whole).max() < _OFF)
        values[i] = whole[: scheme.values].astype(np.int64)
        # Check values are compared modulo t, and no honest sum is further out.
        sound &= int(np.abs(values[i]).max()) <= (t - 1) // 2
        due = checks.of(i, values[i], who)
        sound &= np.array_equal(whole[scheme.values :].astype(np.int64) % t, due)
    flat = values.reshape(-1)
    if not sound or np.any(flat[count:]):
        raise tampered()
    return flat[:count], who


def upload_size(scheme: CkksScheme, count: int) -> int:
    """Return the bytes of the largest upload of ``count`` values."""
    return _HEAD.size + 4 + scheme.blocks(count) * (_LENGTH.size + _LARGEST_VECTOR) + 4


class CkksAdder:
    """Adds up clients' messages as :class:`.messages.Adder` does; the same arguments and methods."""

    def __init__(self, scheme: CkksScheme, *, round: int, count: int, key: bytes | None = None) -> None:
        self._scheme, self._round, self._count, self._key = scheme, round, count, key
        self._context = _without_key(scheme)
        self._total: list[Any] = []
        self._clients: set[int] = set()

    @property
    def clients(self) -> tuple[int, ...]:
        """Whose messages are in the sum, ascending."""
        return tuple(sorted(self._clients))

    def take(self, client: int, data: bytes) -> None:
        """Add a client's message; where it is refused, the sum is as before.

        Raises:
            WireError: it is malformed, or not of this sum and client.
            ArgumentError: the scheme cannot add so many.
        """
        who, parts = _read(data, self._key, self._round, self._count, self._scheme, 1)
        check_sender(client, who, self._clients)
        if len(self._clients) >= self._scheme.participants:
            raise ArgumentError(f"a sum can be of at most {self._scheme.participants} participants")
        vectors = [_vector(self._context, part) for part in parts]
        try:
            total = [a + b for a, b in zip(self._total, vectors, strict=True)] if self._total else vectors
        except (RuntimeError, ValueError) as error:
            raise WireError("encrypted message: it was encrypted with other parameters than those before") from error
        self._key, self._total = data[4:12], total
        self._clients.add(client)

    def sum(self) -> bytes:
        """Return the sum's message.

        Raises:
            ArgumentError: there is nothing in it.
        """
        if not self._clients:
            raise ArgumentError("there is no message to add up")
        vectors = [vector.serialize() for vector in self._total]
        return _write(self._key or b"", self._round, self._count, self.clients, vectors)


def _write(key: bytes, round: int, count: int, who: tuple[int, ...], vectors: list[bytes]) -> bytes:
    head = _HEAD.pack(b"FSC1", key, round, count, len(who)) + np.array(who, "<u4").tobytes()
    body = head + b"".join(_LENGTH.pack(len(vector)) + vector for vector in vectors)
    return body + struct.pack("<I", zlib.crc32(body))


def _read(
    data: bytes, key: bytes | None, round: int, count: int, scheme: CkksScheme, most: int
) -> tuple[tuple[int, ...], list[bytes]]:
    """Take a message apart, of which nothing is believed: its participants, and a vector a block."""
    if len(data) < _HEAD.size + 4 or data[:4] != b"FSC1":
        raise WireError('encrypted message: it does not begin with "FSC1"')
    if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise WireError("encrypted message: it was damaged on its way")
    _, its_key, its_round, its_count, people = _HEAD.unpack_from(data)
    check_due((its_key, its_round, its_count), (key, round, count))
    at, end = _HEAD.size + 4 * people, len(data) - 4
    if not 1 <= people <= most or at > end:
        raise WireError(f"encrypted message: it cannot be of {people} participants")
    who = participants_in(data[_HEAD.size : at])
    vectors = []
    for _ in range(scheme.blocks(count)):
        size = _LENGTH.unpack_from(data, at)[0] if at + _LENGTH.size <= end else end
        at += _LENGTH.size
        if size > min(end - at, _LARGEST_VECTOR):
            raise WireError("encrypted message: a ciphertext is cut off or too long")
        vectors.append(data[at : at + size])
        at += size
    if at != end:
        raise WireError(f"encrypted message: {end - at} bytes too many")
    return who, vectors


def _vector(context: Any, data: bytes) -> Any:
    """Return the library's vector, which is of just the one shape that clients write.

    The library believes what a vector says of its own sizes and number of ciphertexts, so that is read here first.
    """
    start, end = _PREFIX + b"\x12", b"\x19" + struct.pack("<d", _SCALE)
    size, at = _varint(data, len(start))
    if not data.startswith(start) or not data.endswith(end) or at + size + len(end) != len(data):
        raise WireError("encrypted message: a ciphertext is of another size, scale or form")
    try:
        vector = _library().ckks_vector_from(context, data)
        (ciphertext,) = vector.ciphertext()
        form = (ciphertext.size(), ciphertext.coeff_modulus_size(), ciphertext.is_ntt_form(), ciphertext.scale)
    except (RuntimeError, ValueError) as error:
        raise WireError("encrypted message: the library refuses a ciphertext") from error
    if form != (2, len(_MODULI) - 1, True, _SCALE):
        raise WireError("encrypted message: a ciphertext is of another size, scale or form")
    return vector


# Of TenSEAL's Protobuf message: field 1, packed, one size of 4096; then come field 2, the ciphertext, and 3, the scale.
_PREFIX = bytes.fromhex("0a028020")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a Protobuf number of up to four bytes, and where it ends."""
    number = 0
    for shift in range(0, 28, 7):
        byte = data[at] if at < len(data) else 0
        number |= (byte & 127) << shift
        at += 1
        if byte < 128:
            break
    return number, at


def _scheme_of(key: Key) -> CkksScheme:
    if not isinstance(key.scheme, CkksScheme):
        raise ArgumentError("the key is for another encryption than CKKS")
    return key.scheme


def _new_context(scheme: CkksScheme) -> Any:
    library = _library()
    context = library.context(
        library.SCHEME_TYPE.CKKS,
        scheme.ring,
        coeff_mod_bit_sizes=_MODULI,
        encryption_type=library.ENCRYPTION_TYPE.SYMMETRIC,
    )
    context.global_scale = _SCALE
    return context


@cache
def _without_key(scheme: CkksScheme) -> Any:
    """Return what a server adds with: the parameters. Its own key is thrown away."""
    whole = _new_context(scheme)
    return _library().context_from(
        whole.serialize(save_public_key=False, save_secret_key=False, save_galois_keys=False, save_relin_keys=False)
    )


@cache
def _context_of(key: Key) -> Any:
    try:
        context = _library().context_from(key.secret)
    except (RuntimeError, ValueError) as error:
        raise ArgumentError("the key is of no use with its own parameters: restore its file") from error
    context.global_scale = _SCALE
    return context


@cache
def _library() -> Any:
    try:
        return importlib.import_module("tenseal")
    except ImportError as error:
        raise MissingExtraError("Encryption", "encryption") from error
