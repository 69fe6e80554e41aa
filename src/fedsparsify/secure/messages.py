"""Ciphertexts as bytes, and their sum.

A message is, in little-endian order, with B ciphertexts of a ring of N and K participants::

    4  "FSE1"
    1  kind: 1 an upload, 2 a sum with seeds, 3 a sum with second polynomials
    1  log2 N   1  bits of q   1  bits of t
    8  the key's identifier
    4  round
    4  count of values
    4  K, then 4 each: the participants, ascending (an upload has one)
    (count + 2 B) * bits / 8, each in whole bytes: the first polynomials, coefficients of q's bits one after the other;
                         of the last one only those that hold values or check values
    K * B * 64           kinds 1 and 2: the seeds of the second polynomials, by participant
    B * N * bits / 8     kind 3: the second polynomials
    4  CRC-32 of all before

The second polynomial of a fresh ciphertext is random; its 64-byte seed stands for it. The sum of several has no seed,
but is the sum of what the seeds stand for: so a sum forwards them, at 64 / N bytes a value and participant, or, where
that is more, the second polynomials' sum, at q's bits a value (for 55 to 106 participants, in the scheme that they
need, and from 145 on). Adding up needs no key; with seeds it needs no encryption library either.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ..errors import WireError
from .scheme import Scheme

__all__ = [
    "SEED",
    "SUMS",
    "Adder",
    "Kind",
    "Sum",
    "add",
    "check_due",
    "check_least",
    "check_sender",
    "forwards_seeds",
    "pack",
    "participants_in",
    "read",
    "unpack",
    "upload_size",
    "write",
]

SEED = 64
"""Bytes of a seed."""

_MAGIC = b"FSE1"
_HEAD = struct.Struct("<4sBBBB8sIII")

Words = NDArray[np.uint64]

Expand = Callable[[Scheme, bytes], Words]
"""Seeds of B ciphertexts -> their second polynomials, uint64[B, N] modulo q."""


class Kind(IntEnum):
    """What a message is."""

    UPLOAD = 1
    SEEDED = 2
    WHOLE = 3


SUMS = (Kind.SEEDED, Kind.WHOLE)


@dataclass(frozen=True, eq=False)
class Sum:
    """A sum of ciphertexts, or one client's, taken apart.

    Attributes:
        kind: an upload, a sum with seeds, or one with second polynomials.
        scheme: how it was encrypted.
        key: identifier of the key.
        round: the round that it belongs to.
        count: values in it.
        participants: clients whose values it adds up, ascending.
        first: uint64[B, N] modulo q, the first polynomials; 0 where a coefficient holds nothing.
        seeds: K times B times 64 bytes; none where there is ``second``.
        second: uint64[B, N] modulo q, the second polynomials, or None where the seeds stand for them.
    """

    kind: Kind
    scheme: Scheme
    key: bytes
    round: int
    count: int
    participants: tuple[int, ...]
    first: Words
    seeds: bytes
    second: Words | None = None


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
    head = _HEAD.pack(
        *(_MAGIC, message.kind, s.ring.bit_length() - 1, s.modulus_bits, s.plain_bits, message.key, message.round),
        *(message.count, len(message.participants)),
    )
    who = np.array(message.participants, "<u4").tobytes()
    polynomials = message.first if message.second is None else np.concatenate([message.first, message.second])
    sizes = s.used(message.count) + [s.ring] * (len(polynomials) - len(message.first))
    # A polynomial at a time: packing spreads bits to a byte each.
    packed = [pack(one[:size], s.modulus_bits) for one, size in zip(polynomials, sizes, strict=True)]
    body = head + who + b"".join(packed) + message.seeds
    return body + struct.pack("<I", zlib.crc32(body))


class Adder:
    """Adds up clients' messages, one at a time: what a server does, that has no key.

    Args:
        scheme: that is agreed on.
        round: this one.
        count: values that are due.
        key: identifier of the key that is agreed on; None: the first message's.
        expand: seeds -> second polynomials, as :func:`.sealing.expand`; without it, a sum forwards all seeds.
    """

    def __init__(
        self, scheme: Scheme, *, round: int, count: int, key: bytes | None = None, expand: Expand | None = None
    ) -> None:
        self._scheme, self._round, self._count, self._key = scheme, round, count, key
        self._expand = expand
        self._total = np.zeros((scheme.blocks(count), scheme.ring), np.uint64)
        self._seeds: dict[int, bytes] = {}

    @property
    def clients(self) -> tuple[int, ...]:
        """Whose messages are in the sum, ascending."""
        return tuple(sorted(self._seeds))

    def take(self, client: int, data: bytes) -> None:
        """Add a client's message; where it is refused, the sum is as before.

        Raises:
            WireError: it is malformed, or not of this sum and client.
            ArgumentError: the scheme cannot add so many.
        """
        upload = read(data, (Kind.UPLOAD,), self._scheme, self._key, self._round, self._count)
        check_sender(client, upload.participants, self._seeds)
        self._scheme.check(len(self._seeds) + 1)
        self._key = upload.key
        self._seeds[client] = upload.seeds
        self._total += upload.first

    def sum(self) -> bytes:
        """Return the sum's message.

        Raises:
            ArgumentError: there is nothing in it.
        """
        scheme, clients, expand = self._scheme, self.clients, self._expand
        scheme.check(len(clients))
        total = self._total % np.uint64(scheme.modulus)
        known = b"".join(self._seeds[k] for k in clients)
        about = (scheme, self._key or b"", self._round, self._count, clients, total)
        if expand is None or forwards_seeds(scheme, len(clients)):
            return write(Sum(Kind.SEEDED, *about, known))
        second = np.zeros_like(total)
        for k in clients:
            second += expand(scheme, self._seeds[k])
        second %= np.uint64(scheme.modulus)
        return write(Sum(Kind.WHOLE, *about, b"", second))


def check_due(found: tuple[bytes, int, int], due: tuple[bytes | None, int, int]) -> None:
    """Refuse a message of another key (where one is due), round or number of values than those due.

    Raises:
        WireError: as it says.
    """
    if due[0] is not None and found[0] != due[0]:
        raise WireError("encrypted message: it was encrypted with another key")
    if found[1] != due[1]:
        raise WireError(f"encrypted message: it is of round {found[1]}, but this is round {due[1]}")
    if found[2] != due[2]:
        raise WireError(f"encrypted message: it has {found[2]} values where {due[2]} are due")


def participants_in(data: bytes | memoryview) -> tuple[int, ...]:
    """Return the participants that a message lists.

    Raises:
        WireError: they are not in ascending order.
    """
    who = tuple(int(k) for k in np.frombuffer(data, "<u4"))
    if list(who) != sorted(set(who)):
        raise WireError("encrypted message: its participants are not in ascending order")
    return who


def check_sender(client: int, participants: tuple[int, ...], taken: Collection[int]) -> None:
    """Refuse an upload that is not the client's own, or its second.

    Raises:
        WireError: as it says.
    """
    if participants != (client,):
        raise WireError(f"the encrypted message says that client {participants[0]} sent it")
    if client in taken:
        raise WireError("it has already given its values")


def check_least(participants: Collection[int], least: int) -> None:
    """Refuse a sum of so few that it says too much of each.

    Raises:
        WireError: as it says.
    """
    if len(participants) < least:
        raise WireError(
            f"encrypted message: a sum of {len(participants)} says too much of each: at least {least} are due"
        )


def forwards_seeds(scheme: Scheme, participants: int) -> bool:
    """Whether a sum is smaller with all seeds than with the second polynomials' sum."""
    return participants * SEED <= scheme.ring * scheme.modulus_bits // 8


def upload_size(scheme: Scheme, count: int) -> int:
    """Return the bytes of an upload of ``count`` values."""
    packed = sum(_packed_size(n, scheme) + SEED for n in scheme.used(count))
    return _HEAD.size + 4 + packed + 4


def add(
    uploads: Iterable[tuple[int, bytes]], scheme: Scheme, *, round: int, count: int, expand: Expand | None = None
) -> bytes:
    """Return the sum of clients' messages, as an :class:`Adder` does that is given them all.

    Args:
        uploads: client and message, one for each client; they are read one at a time.
        scheme: that is agreed on.
        round: this one.
        count: values that are due.
        expand: as for the adder.

    Raises:
        WireError: a message is malformed, or not of this sum and client.
        ArgumentError: the scheme cannot add so many.
    """
    adder = Adder(scheme, round=round, count=count, expand=expand)
    for client, data in uploads:
        try:
            adder.take(client, data)
        except WireError as error:
            raise WireError(f"client {client}: {error}") from error
    return adder.sum()


def read(data: bytes, kinds: Collection[Kind], scheme: Scheme, key: bytes | None, round: int, count: int) -> Sum:
    """Take a message apart.

    Args:
        data: from a peer; nothing of it is trusted, and sizes are checked before memory is taken.
        kinds: that are due.
        scheme: that is agreed on.
        key: identifier of the key that is agreed on; None: any.
        round: this one.
        count: values that are due.

    Raises:
        WireError: it is malformed, or of another kind, scheme, key, round or count.
    """
    if len(data) < _HEAD.size + 4:
        raise WireError(f"encrypted message: {len(data)} bytes are fewer than the {_HEAD.size + 4} of an empty one")
    magic, kind, ring, modulus, plain, its_key, its_round, its_count, people = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise WireError('encrypted message: it does not begin with "FSE1"')
    if kind not in kinds:
        due = " or ".join(one.name.lower() for one in kinds)
        raise WireError(f"encrypted message: it is of kind {kind}, and not {due}")
    if (ring, modulus, plain) != (scheme.ring.bit_length() - 1, scheme.modulus_bits, scheme.plain_bits):
        raise WireError("encrypted message: it was encrypted with other parameters than those agreed on")
    check_due((its_key, its_round, its_count), (key, round, count))
    if not 1 <= people <= (1 if kind == Kind.UPLOAD else scheme.participants):
        raise WireError(f"encrypted message: it cannot be of {people} participants")
    blocks = scheme.blocks(count)
    used, full = scheme.used(count), [scheme.ring] * blocks
    packed, second_size = (sum(_packed_size(n, scheme) for n in sizes) for sizes in (used, full))
    size = _HEAD.size + 4 * people + packed + (second_size if kind == Kind.WHOLE else people * blocks * SEED) + 4
    if len(data) != size:
        raise WireError(f"encrypted message: it has {len(data)} bytes where {size} are due")
    if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise WireError("encrypted message: it was damaged on its way")
    here = memoryview(data)[_HEAD.size : -4]
    who = participants_in(here[: 4 * people])
    here = here[4 * people :]
    first, rest = _polynomials(here[:packed], scheme, used), here[packed:]
    if kind == Kind.WHOLE:
        second = _polynomials(rest, scheme, full)
        return Sum(Kind.WHOLE, scheme, its_key, round, count, who, first, b"", second)
    return Sum(Kind(kind), scheme, its_key, round, count, who, first, bytes(rest))


def _packed_size(coefficients: int, scheme: Scheme) -> int:
    return -(-coefficients * scheme.modulus_bits // 8)


def _polynomials(data: memoryview, scheme: Scheme, sizes: Sequence[int]) -> Words:
    words = np.zeros((len(sizes), scheme.ring), np.uint64)
    at = 0
    for i, size in enumerate(sizes):
        length = _packed_size(size, scheme)
        words[i, :size] = unpack(data[at : at + length], scheme.modulus_bits, size)
        at += length
    if words.size and int(words.max()) >= scheme.modulus:
        raise WireError("encrypted message: a coefficient is not below the modulus")
    return words
