"""Microsoft SEAL by way of TenSEAL: the only file that knows the library.

SEAL's own encryption is used unchanged: its generator draws keys, seeds and noise, and it refuses parameters below 128
bits of security. What is ours is how its objects are written: its binding saves and loads through files and always
compresses them, so a ciphertext's two parts are taken out of what it saves, and put into what it loads. That layout
(SEAL 4.1, format version 4.3) is checked wherever it is read, and the version of TenSEAL is pinned. The files are
Linux's anonymous ones, in memory: nothing secret is written to a disk, unless the system swaps.

Every ciphertext ends with :data:`.scheme.CHECKS` check values: sums of its values under weights that only the key's
holders know, plus a number that depends on the client. Both depend on context, round, count and block. Sums of check
values check the sum of values: that a wrong key, a repeated, missing or replayed ciphertext or an alteration changes
the sum is found, but with a chance of one in t^2. The checks hold against those who have no key, if no client encrypts
different values for one context and round. That a sum was refused tells whoever altered it something about the key,
coefficient by coefficient: a key of which a sum was refused must not be used again.
"""

from __future__ import annotations

import importlib
import os
import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, MissingExtraError, WireError
from .checks import Checks, tampered
from .keys import Key
from .messages import SEED, SUMS, Kind, Sum, Words, check_least, read, unpack, write
from .scheme import CHECKS, Scheme

__all__ = ["decrypt", "encrypt", "expand", "make_key"]

# SEAL's header: magic, its own size, version, compression, size with the header.
_HEADER = struct.Struct("<HBBBBHQ")
_PLAIN, _ZSTD = 0, 2
_BLAKE2XB = 1  # the generator that seeds are for
# Of a ciphertext: parameters' digest, NTT form, polynomials, N, primes, scale, correction factor.
_CIPHERTEXT = struct.Struct("<32sBQQQdQ")
# Of a plaintext, which a secret key is: parameters' digest, coefficients, scale.
_PLAINTEXT = struct.Struct("<32sQd")
_COUNT = struct.Struct("<Q")
# Of a seed: the generator's kind, and the seed.
_SEED = struct.Struct(f"<B{SEED}s")


def make_key(scheme: Scheme) -> Key:
    """Return a new key for a scheme, of the operating system's randomness."""
    seal = _Seal.of(scheme)
    secret = seal.library.KeyGenerator(seal.context).secret_key()
    with _memory() as path:
        secret.save(path)
        data = _coefficients(_content(path), scheme.ring).astype(np.uint64)
    return Key.of(scheme, data, secrets.token_bytes(32))


def encrypt(key: Key, values: NDArray[np.int64], *, client: int, round: int, context: bytes) -> bytes:
    """Return an upload of integers.

    Args:
        key: the clients' key.
        values: int64[k], each above -t / 2 and below t / 2; so must be the sum of all clients'.
        client: whose they are.
        round: the round that they belong to.
        context: what else tells this sum from others under the key: run, attempt, payload. Who is asked again for the
            same context and round sends the same bytes again, and encrypts nothing anew.

    Raises:
        ArgumentError: a value is too large, or an argument out of its range.
    """
    scheme, t = _scheme_of(key), key.scheme.plain_modulus
    if values.dtype != np.int64 or values.ndim != 1:
        raise ArgumentError(f"values must be int64[k], not {values.dtype} of shape {values.shape}")
    for name, number in (("client", client), ("round", round)):
        if not 0 <= number < 1 << 32:
            raise ArgumentError(f"{name} = {number} must be from 0 to {(1 << 32) - 1}")
    most = (t - 1) // 2
    for largest in (int(values.min(initial=0)), int(values.max(initial=0))):
        if abs(largest) > most:
            raise ArgumentError(f"a value of {largest} does not fit: the largest are {most} and -{most}")
    checks = Checks(key, context, round, values.size)
    seal = _Seal.of(scheme)
    encryptor = seal.library.Encryptor(seal.context, seal.secret(key))
    first = np.zeros((scheme.blocks(values.size), scheme.ring), np.uint64)
    seeds = []
    with _memory() as path:
        for i, used in enumerate(scheme.used(values.size)):
            block = values[i * scheme.values :][: used - CHECKS]
            content = np.concatenate([block % t, checks.of(i, block, [client])])
            encryptor.encrypt_symmetric(seal.plaintext(path, content)).save(path)
            polynomial, seed = _ciphertext(_content(path), scheme)
            first[i, :used] = polynomial[:used]
            seeds.append(seed)
    return write(Sum(Kind.UPLOAD, scheme, key.identifier, round, values.size, (client,), first, b"".join(seeds)))


def decrypt(
    key: Key, message: bytes, *, round: int, count: int, context: bytes, least: int = 2
) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Return the sum int64[count] of all participants' values, and who they are.

    Args:
        key: the clients' key.
        message: from the server.
        round: the round that is due.
        count: values that are due.
        context: as it was given to :func:`encrypt`.
        least: fewest participants of a sum that is read; a sum of one is that one's values.

    Raises:
        WireError: the message is malformed, not what is due, or of too few participants.
        TamperedError: it is not the sum of just those participants' values. Do not use the key again, and do not tell
            the server why.
    """
    scheme, t = _scheme_of(key), key.scheme.plain_modulus
    total = read(message, SUMS, scheme, key.identifier, round, count)
    check_least(total.participants, least)
    checks = Checks(key, context, round, count)
    sound = True
    seal = _Seal.of(scheme)
    decryptor = seal.library.Decryptor(seal.context, seal.secret(key))
    adder = seal.library.Evaluator(seal.context)
    blocks = len(total.first)
    values = np.zeros(count, np.int64)
    plain = seal.library.Plaintext()
    nothing = np.zeros(scheme.ring, np.uint64)
    with _memory() as path:
        for i, used in enumerate(scheme.used(count)):
            if total.second is None:
                seeds = [total.seeds[(k * blocks + i) * SEED :][:SEED] for k in range(len(total.participants))]
                whole = seal.seeded(path, total.first[i], seeds[0])
                for seed in seeds[1:]:
                    adder.add_inplace(whole, seal.seeded(path, nothing, seed))
            else:
                whole = seal.whole(path, total.first[i], total.second[i])
            decryptor.decrypt(whole, plain)
            plain.save(path)
            found = _coefficients(_content(path), used)
            block = values[i * scheme.values :][: used - CHECKS]
            block[:] = found[:-CHECKS]
            # All of them, whatever is found: how long this takes must not say where a fault is.
            sound &= np.array_equal(found[-CHECKS:], checks.of(i, block, total.participants))
    if not sound:
        raise tampered()
    return np.where(values > t // 2, values - t, values), total.participants


def _scheme_of(key: Key) -> Scheme:
    if not isinstance(key.scheme, Scheme):
        raise ArgumentError("the key is for another encryption than BFV")
    return key.scheme


def expand(scheme: Scheme, seeds: bytes) -> Words:
    """Return the second polynomials uint64[B, N] that B seeds stand for; it needs no key."""
    seal = _Seal.of(scheme)
    nothing = np.zeros(scheme.ring, np.uint64)
    polynomials = []
    with _memory() as path:
        for start in range(0, len(seeds), SEED):
            seal.seeded(path, nothing, seeds[start : start + SEED]).save(path)
            body = _content(path)
            polynomials.append(np.frombuffer(body, "<u8", scheme.ring, len(body) - 8 * scheme.ring))
    return np.array(polynomials, np.uint64).reshape(-1, scheme.ring)


class _Seal:
    """The library, set up for one scheme."""

    def __init__(self, scheme: Scheme) -> None:
        self.library = library = _library()
        parameters = library.EncryptionParameters(library.SCHEME_TYPE.BFV)
        parameters.set_poly_modulus_degree(scheme.ring)
        primes = library.CoeffModulus.Create(scheme.ring, [scheme.modulus_bits])
        plain = library.PlainModulus.Batching(scheme.ring, scheme.plain_bits)
        if ([prime.value() for prime in primes], plain.value()) != ([scheme.modulus], scheme.plain_modulus):
            raise ArgumentError("this version of TenSEAL chooses other primes: install the one that is pinned")
        parameters.set_coeff_modulus(primes)
        parameters.set_plain_modulus(plain)
        self.context = library.SEALContext(parameters, True, library.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise ArgumentError(f"{scheme} is refused: {self.context.parameters_error_message()}")
        self._scheme = scheme
        # What a ciphertext and a secret key of these parameters begin with.
        self._digest = struct.pack("<4Q", *self.context.first_parms_id())

    @staticmethod
    @cache
    def of(scheme: Scheme) -> _Seal:
        return _Seal(scheme)

    def secret(self, key: Key) -> Any:
        """Return the library's object of a key."""
        data = unpack(key.secret, self._scheme.modulus_bits, self._scheme.ring)
        secret = self.library.SecretKey()
        with _memory() as path:
            _put(path, _PLAINTEXT.pack(self._digest, self._scheme.ring, 1.0) + _array(data))
            try:
                secret.load(self.context, path)
            except (RuntimeError, ValueError) as error:
                raise ArgumentError("the key is of no use with its own parameters: restore its file") from error
        return secret

    def plaintext(self, path: str, coefficients: NDArray[np.int64]) -> Any:
        """Return the library's object of a polynomial with these coefficients, and zeros after them."""
        plain = self.library.Plaintext()
        _put(path, _PLAINTEXT.pack(bytes(32), len(coefficients), 1.0) + _array(coefficients))
        plain.load(self.context, path)
        return plain

    def seeded(self, path: str, first: Words, seed: bytes) -> Any:
        """Return the ciphertext of a first polynomial uint64[N] and a seed."""
        body = _SEED.pack(_BLAKE2XB, seed)
        return self._load(path, _array(first) + _header(len(body)) + body)

    def whole(self, path: str, first: Words, second: Words) -> Any:
        """Return the ciphertext of two polynomials uint64[N]."""
        return self._load(path, _array(np.concatenate([first, second])))

    def _load(self, path: str, polynomials: bytes) -> Any:
        ciphertext = self.library.Ciphertext()
        _put(path, _CIPHERTEXT.pack(self._digest, 0, 2, self._scheme.ring, 1, 1.0, 1) + polynomials)
        try:
            ciphertext.load(self.context, path)
        except (RuntimeError, ValueError) as error:
            raise WireError(f"encrypted message: the library refuses a ciphertext ({error})") from error
        return ciphertext


@cache
def _library() -> Any:
    try:
        importlib.import_module("zstandard")
        return importlib.import_module("tenseal.sealapi")
    except ImportError as error:
        raise MissingExtraError("Encryption", "encryption") from error


@contextmanager
def _memory() -> Iterator[str]:
    """Yield the path of a file that exists in memory only."""
    if not hasattr(os, "memfd_create"):
        raise ArgumentError("encryption needs Linux: elsewhere the library could write keys to disk only")
    handle = os.memfd_create("fedsparsify")
    try:
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)


def _header(size: int) -> bytes:
    return _HEADER.pack(0xA15E, _HEADER.size, 4, 3, _PLAIN, 0, _HEADER.size + size)


def _put(path: str, body: bytes) -> None:
    with open(path, "wb") as file:
        file.write(_header(len(body)) + body)


def _array(words: NDArray[Any]) -> bytes:
    body = _COUNT.pack(len(words)) + words.astype("<u8").tobytes()
    return _header(len(body)) + body


def _content(path: str) -> bytes:
    """Return what the library has saved, uncompressed."""
    import zstandard

    with open(path, "rb") as file:
        data = file.read()
    magic, own, major, minor, compression, _, size = _HEADER.unpack_from(data)
    if (magic, own, major, minor, compression, size) != (0xA15E, _HEADER.size, 4, 3, _ZSTD, len(data)):
        raise ArgumentError("this version of TenSEAL writes another format: install the one that is pinned")
    return zstandard.ZstdDecompressor().decompressobj().decompress(data[_HEADER.size :])


def _coefficients(body: bytes, count: int) -> NDArray[np.int64]:
    """Return the first coefficients int64[count] of a plaintext that was saved, without zeros at its end."""
    _, saved, _ = _PLAINTEXT.unpack_from(body)
    start = _PLAINTEXT.size + _HEADER.size + _COUNT.size
    found = np.zeros(count, np.int64)
    there = min(saved, count)
    found[:there] = np.frombuffer(body, "<u8", there, start)
    return found


def _ciphertext(body: bytes, scheme: Scheme) -> tuple[Words, bytes]:
    """Return the first polynomial and the seed of a fresh ciphertext."""
    _, ntt, polynomials, ring, primes, _, _ = _CIPHERTEXT.unpack_from(body)
    start = _CIPHERTEXT.size + _HEADER.size + _COUNT.size
    seeded = start + 8 * scheme.ring + _HEADER.size
    if (ntt, polynomials, ring, primes, len(body)) != (0, 2, scheme.ring, 1, seeded + _SEED.size):
        raise ArgumentError("this version of TenSEAL writes another format: install the one that is pinned")
    kind, seed = _SEED.unpack_from(body, seeded)
    if kind != _BLAKE2XB:
        raise ArgumentError("this version of TenSEAL draws its randomness otherwise: install the one that is pinned")
    return np.frombuffer(body, "<u8", scheme.ring, start).astype(np.uint64), seed
