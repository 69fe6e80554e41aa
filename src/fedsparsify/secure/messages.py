"""Ciphertexts as bytes, and their sum.

A message is, in little-endian order, with B ciphertexts of a ring of N and K participants::

    4  "FSE1"
    1  kind: 1 an upload, 2 a sum with seeds, 3 a sum with second polynomials
    1  log2 N   1  bits of q   1  bits of t
    8  the key's identifier
    4  round
    4  count of values
    4  K, then 4 each: the participants, ascending (an upload has one)
    B * N * bits / 8     the first polynomials, coefficients of q's bits one after the other
    K * B * 64           kinds 1 and 2: the seeds of the second polynomials, by participant
    B * N * bits / 8     kind 3: the second polynomials
    4  CRC-32 of all before

The second polynomial of a fresh ciphertext is random; its 64-byte seed stands for it. The sum of several has no seed,
but is the sum of what the seeds stand for: so a sum forwards them, at 64 / N bytes a value and participant, or, from
some fifty participants on, the second polynomials' sum, at q's bits a value. Adding up needs no key; with seeds it
needs no encryption library either.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import WireError
from .scheme import Scheme

__all__ = ["SEED", "Sum", "Upload", "add", "pack", "read_sum", "read_upload", "unpack", "write"]

SEED = 64
"""Bytes of a seed."""

_MAGIC = b"FSE1"
_UPLOAD, _SUM, _WHOLE = 1, 2, 3
_HEAD = struct.Struct("<4sBBBB8sIII")

Words = NDArray[np.uint64]

Expand = Callable[[Scheme, bytes], Words]
"""Seeds of B ciphertexts -> their second polynomials, uint64[B, N] modulo q."""


@dataclass(frozen=True, eq=False)
class Sum:
    """A sum of ciphertexts, taken apart.

    Attributes:
        scheme: how it was encrypted.
        key: identifier of the key.
        round: the round that it belongs to.
        count: values in it.
        participants: clients whose values it adds up, ascending.
        first: uint64[B, N] modulo q, the first polynomials.
        seeds: K times B times 64 bytes; none where there is ``second``.
        second: uint64[B, N] modulo q, the second polynomials, or None where the seeds stand for them.
    """

    scheme: Scheme
    key: bytes
    round: int
    count: int
    participants: tuple[int, ...]
    first: Words
    seeds: bytes
    second: Words | None = None


class Upload(Sum):
    """One client's ciphertexts: a sum of one."""


def pack(words: Words, bits: int) -> bytes:
    """Return integers below 2**bits without the bits above: the first is in the lowest bits of the first byte."""
    spread = np.unpackbits(words.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, count=bits, bitorder="little")
    return np.packbits(spread, bitorder="little").tobytes()


def unpack(data: bytes | memoryview, bits: int, count: int) -> Words:
    """Return uint64[count] that :func:`pack` has packed."""
    spread = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits, bitorder="little").reshape(count, bits)
    whole = np.packbits(spread, axis=1, bitorder="little")
    words = np.zeros((count, 8), np.uint8)
    words[:, : whole.shape[1]] = whole
    return words.view("<u8").reshape(count).astype(np.uint64)


def write(message: Sum) -> bytes:
    """Return a message's bytes."""
    s = message.scheme
    kind = _UPLOAD if isinstance(message, Upload) else _SUM if message.second is None else _WHOLE
    head = _HEAD.pack(
        *(_MAGIC, kind, s.ring.bit_length() - 1, s.modulus_bits, s.plain_bits, message.key, message.round),
        *(message.count, len(message.participants)),
    )
    who = np.array(message.participants, "<u4").tobytes()
    second = message.seeds if message.second is None else pack(message.second.ravel(), s.modulus_bits)
    body = head + who + pack(message.first.ravel(), s.modulus_bits) + second
    return body + struct.pack("<I", zlib.crc32(body))


def read_upload(data: bytes, scheme: Scheme, key: bytes | None, round: int, count: int) -> Upload:
    """Return one client's message.

    Args:
        data: from a peer; nothing of it is trusted.
        scheme: that is agreed on.
        key: identifier of the key that is agreed on; None: any.
        round: this one.
        count: values that are due.

    Raises:
        WireError: it is malformed, or of another scheme, key, round or count.
    """
    return Upload(*_read(data, (_UPLOAD,), scheme, key, round, count))


def read_sum(data: bytes, scheme: Scheme, key: bytes, round: int, count: int) -> Sum:
    """Return a server's sum; as :func:`read_upload`."""
    return Sum(*_read(data, (_SUM, _WHOLE), scheme, key, round, count))


def add(uploads: Iterable[bytes], scheme: Scheme, *, round: int, count: int, expand: Expand | None = None) -> bytes:
    """Return the sum of clients' messages: what a server does, that has no key.

    Args:
        uploads: one for each client; they are read one at a time.
        scheme: that is agreed on.
        round: this one.
        count: values that are due.
        expand: seeds -> second polynomials, as :func:`.sealing.expand`; without it, a sum forwards all seeds.

    Raises:
        WireError: a message is malformed, or not of this sum; the message says the how manieth it is.
        ArgumentError: the scheme cannot add so many.
    """
    key: bytes | None = None
    total = np.zeros((scheme.blocks(count), scheme.ring), np.uint64)
    seeds: dict[int, bytes] = {}
    for place, data in enumerate(uploads):
        try:
            upload = read_upload(data, scheme, key, round, count)
        except WireError as error:
            raise WireError(f"upload {place}: {error}") from error
        key, client = upload.key, upload.participants[0]
        if client in seeds:
            raise WireError(f"upload {place}: client {client} has already given its values")
        seeds[client] = upload.seeds
        scheme.check(len(seeds))
        total += upload.first
    scheme.check(len(seeds))
    assert key is not None
    total %= np.uint64(scheme.modulus)
    clients = tuple(sorted(seeds))
    known = b"".join(seeds[k] for k in clients)
    if expand is None or len(known) <= total.size * scheme.modulus_bits // 8:
        return write(Sum(scheme, key, round, count, clients, total, known))
    second = np.zeros_like(total)
    for k in clients:
        second += expand(scheme, seeds[k])
    return write(Sum(scheme, key, round, count, clients, total, b"", second % np.uint64(scheme.modulus)))


def _read(
    data: bytes, kinds: tuple[int, ...], scheme: Scheme, key: bytes | None, round: int, count: int
) -> tuple[Scheme, bytes, int, int, tuple[int, ...], Words, bytes, Words | None]:
    if len(data) < _HEAD.size + 4:
        raise WireError(f"encrypted message: {len(data)} bytes are fewer than the {_HEAD.size + 4} of an empty one")
    magic, kind, ring, modulus, plain, its_key, its_round, its_count, people = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise WireError('encrypted message: it does not begin with "FSE1"')
    if kind not in kinds:
        raise WireError(
            f"encrypted message: {'an upload' if _UPLOAD in kinds else 'a sum'} was expected, not kind {kind}"
        )
    if (ring, modulus, plain) != (scheme.ring.bit_length() - 1, scheme.modulus_bits, scheme.plain_bits):
        raise WireError("encrypted message: it was encrypted with other parameters than those agreed on")
    if key is not None and its_key != key:
        raise WireError("encrypted message: it was encrypted with another key")
    if its_round != round:
        raise WireError(f"encrypted message: it is of round {its_round}, but this is round {round}")
    if its_count != count:
        raise WireError(f"encrypted message: it has {its_count} values where {count} are due")
    if not 1 <= people <= (1 if kind == _UPLOAD else scheme.participants):
        raise WireError(f"encrypted message: it cannot be of {people} participants")
    blocks = scheme.blocks(count)
    packed = blocks * scheme.ring * scheme.modulus_bits // 8
    seeds = 0 if kind == _WHOLE else people * blocks * SEED
    size = _HEAD.size + 4 * people + packed + (packed if kind == _WHOLE else seeds) + 4
    if len(data) != size:
        raise WireError(f"encrypted message: it has {len(data)} bytes where {size} are due")
    if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise WireError("encrypted message: it was damaged on its way")
    here = memoryview(data)[_HEAD.size : -4]
    who = tuple(int(k) for k in np.frombuffer(here[: 4 * people], "<u4"))
    if list(who) != sorted(set(who)):
        raise WireError("encrypted message: its participants are not in ascending order")
    here = here[4 * people :]
    first = _polynomials(here[:packed], scheme, blocks)
    second = _polynomials(here[packed:], scheme, blocks) if kind == _WHOLE else None
    return scheme, its_key, round, count, who, first, bytes(here[packed:]) if second is None else b"", second


def _polynomials(data: memoryview, scheme: Scheme, blocks: int) -> Words:
    words = unpack(data, scheme.modulus_bits, blocks * scheme.ring)
    if words.size and int(words.max()) >= scheme.modulus:
        raise WireError("encrypted message: a coefficient is not below the modulus")
    return words.reshape(blocks, scheme.ring)
