"""Microsoft SEAL by way of TenSEAL: the only file that knows the library.

SEAL's own encryption is used unchanged: its generator draws keys, seeds and noise, and it refuses parameters below 128
bits of security. What is ours is how its objects are written: its binding saves and loads through files and always
compresses them, so a ciphertext's two parts are taken out of what it saves, and put into what it loads. That layout
(SEAL 4.1, format version 4.3) is checked wherever it is read, and the version of TenSEAL is pinned. The files are
memory: nothing secret touches a disk.

Every ciphertext ends with :data:`.scheme.CHECKS` check values: sums of its values under weights that only the key's
holders know, plus a number that depends on client, round and block. Sums of check values check the sum of values: a
wrong key, an altered, repeated, missing or replayed ciphertext is found but with a chance of one in t^2.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import secrets
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, MissingExtraError, WireError
from .keys import Key
from .messages import SEED, Upload, Words, read_sum, unpack, write
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
        body = _content(path)
    _, data = _plaintext(body)
    return Key.of(scheme, data, secrets.token_bytes(32))


def encrypt(key: Key, values: NDArray[np.int64], *, client: int, round: int) -> bytes:
    """Return an upload of integers.

    Args:
        key: the clients' key.
        values: int64[k], each above -t / 2 and below t / 2; so must be the sum of all clients'.
        client: whose they are.
        round: the round that they belong to; no client may encrypt twice for one round and key.

    Raises:
        ArgumentError: a value is too large.
    """
    scheme, t = key.scheme, key.scheme.plain_modulus
    if values.size and int(np.abs(values).max()) > (t - 1) // 2:
        raise ArgumentError(
            f"a value of {int(np.abs(values).max())} is more than {(t - 1) // 2}, the largest that fits"
        )
    seal = _Seal.of(scheme)
    encryptor = seal.library.Encryptor(seal.context, seal.secret(key))
    blocks = scheme.blocks(values.size)
    padded = np.zeros(blocks * scheme.values, np.int64)
    padded[: values.size] = values
    first = np.zeros((blocks, scheme.ring), np.uint64)
    seeds = []
    plain = seal.library.Plaintext()
    with _memory() as path:
        for i, block in enumerate(padded.reshape(blocks, scheme.values)):
            checks = (_check(key, round, i, block) + _names(key, round, i, [client])) % t
            seal.encoder.encode(np.concatenate([block % t, checks]).tolist(), plain)
            encryptor.encrypt_symmetric(plain).save(path)
            first[i], seed = _ciphertext(_content(path), scheme)
            seeds.append(seed)
    return write(Upload(scheme, key.identifier, round, values.size, (client,), first, b"".join(seeds)))


def decrypt(key: Key, message: bytes, *, round: int, count: int) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Return the sum int64[count] of all participants' values, and who they are.

    Raises:
        WireError: the message is malformed, or not the sum of just those participants' values under this key.
    """
    scheme, t = key.scheme, key.scheme.plain_modulus
    total = read_sum(message, scheme, key.identifier, round, count)
    seal = _Seal.of(scheme)
    decryptor = seal.library.Decryptor(seal.context, seal.secret(key))
    adder = seal.library.Evaluator(seal.context)
    blocks = len(total.first)
    values = np.zeros((blocks, scheme.values), np.int64)
    plain = seal.library.Plaintext()
    nothing = np.zeros(scheme.ring, np.uint64)
    with _memory() as path:
        for i in range(blocks):
            if total.second is None:
                seeds = [total.seeds[(k * blocks + i) * SEED :][:SEED] for k in range(len(total.participants))]
                whole = seal.seeded(path, total.first[i], seeds[0])
                for seed in seeds[1:]:
                    adder.add_inplace(whole, seal.seeded(path, nothing, seed))
            else:
                whole = seal.whole(path, total.first[i], total.second[i])
            decryptor.decrypt(whole, plain)
            found = np.array(seal.encoder.decode_uint64(plain), np.int64)
            block = found[: scheme.values]
            due = (_check(key, round, i, block) + _names(key, round, i, total.participants)) % t
            if not np.array_equal(found[scheme.values :], due):
                raise WireError(
                    f"encrypted message: ciphertext {i} is not the sum of what clients"
                    f" {', '.join(map(str, total.participants[:8]))} have encrypted: it was altered, or too noisy"
                )
            values[i] = block
    flat = values.reshape(-1)
    centred = np.where(flat > t // 2, flat - t, flat)
    if np.any(centred[count:]):
        raise WireError("encrypted message: there are values behind the last")
    return centred[:count], total.participants


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
        self.encoder = library.BatchEncoder(self.context)
        self._scheme = scheme
        # What a ciphertext and a secret key of these parameters begin with.
        probe = library.KeyGenerator(self.context).secret_key()
        with _memory() as path:
            probe.save(path)
            self._digest, _ = _plaintext(_content(path))

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
        return importlib.import_module("tenseal.sealapi")
    except ImportError as error:
        raise MissingExtraError("Encryption", "encryption") from error


@contextmanager
def _memory() -> Iterator[str]:
    """Yield the path of a file that exists in memory only, where the system can do that, and else is ours alone."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("fedsparsify")
        try:
            yield f"/proc/self/fd/{handle}"
        finally:
            os.close(handle)
    else:  # pragma: no cover
        with tempfile.TemporaryDirectory() as folder:
            yield os.path.join(folder, "seal")


def _header(size: int) -> bytes:
    return _HEADER.pack(0xA15E, _HEADER.size, 4, 3, _PLAIN, 0, _HEADER.size + size)


def _put(path: str, body: bytes) -> None:
    with open(path, "wb") as file:
        file.write(_header(len(body)) + body)


def _array(words: Words) -> bytes:
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


def _plaintext(body: bytes) -> tuple[bytes, Words]:
    """Return the parameters' digest and the coefficients of what was saved."""
    digest, count, _ = _PLAINTEXT.unpack_from(body)
    start = _PLAINTEXT.size + _HEADER.size + _COUNT.size
    return digest, np.frombuffer(body, "<u8", count, start).astype(np.uint64)


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


def _stream(key: Key, what: bytes, round: int, block: int, client: int, size: int) -> NDArray[np.int64]:
    """Return int64[size] modulo t that only the key's holders can know."""
    given = key.checking + what + struct.pack("<III", round, block, client)
    drawn = np.frombuffer(hashlib.shake_256(given).digest(8 * size), "<u8")
    return (drawn % np.uint64(key.scheme.plain_modulus)).astype(np.int64)


def _check(key: Key, round: int, block: int, values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int64[CHECKS], the values' sums under secret weights, modulo t."""
    t, n = key.scheme.plain_modulus, len(values)
    weights = _stream(key, b"weights", round, block, 0, CHECKS * n).reshape(CHECKS, n)
    # t has at most 24 bits, a ring 2**11 places: below 2**59.
    checks: NDArray[np.int64] = (weights * (values % t)).sum(axis=1) % t
    return checks


def _names(key: Key, round: int, block: int, clients: Iterable[int]) -> NDArray[np.int64]:
    """Return int64[CHECKS], a number that says who takes part, modulo t."""
    named = [_stream(key, b"client", round, block, client, CHECKS) for client in clients]
    names: NDArray[np.int64] = np.sum(named, axis=0) % key.scheme.plain_modulus
    return names
