"""A message's frame: header, sections by name, checksum. Needs no layout, so that any message can be explained."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from ..errors import ArgumentError, WireError
from ..layout import ParameterLayout
from .bits import Reader, varint
from .messages import Base, Kind, Message

__all__ = ["SECTIONS", "Frame", "Header", "read_frame", "write_frame"]

SECTIONS = ("mask", "values", "fresh", "buffers", "metrics", "memory")
"""All sections, in the order in which they stand."""

Section = tuple[int, bytes]
"""Encoding byte and content."""

_MAGIC, _VERSION = b"FSPM", 2
_HAS_BASE, _TREND_KNOWN = 1, 2
_U32 = (1 << 32) - 1
_CHECKSUM_BYTES = 4
_SHORTEST = len(_MAGIC) + 3 + 8 + 6 + 2 * len(SECTIONS) + _CHECKSUM_BYTES


@dataclass(frozen=True)
class Header:
    """The fields before the sections.

    Attributes:
        kind: what the message is for.
        layout: first 8 bytes of the SHA-256 of the network's tensor names and shapes.
        round: the round it belongs to.
        client: index of the sending client, -1 for the server.
        examples: number of the client's examples in an update, else 0.
        n: number of parameters.
        b: number of buffer elements.
        k: number of surviving parameters.
        trend_known: see :class:`Message`.
        base_round: round of the base, or None without a base.
        gain: how much of the base's trend is added to its values, in 1/128; 0 for none.
        base_checksum: eight bytes of the base, with its trend if ``gain`` is not 0.
    """

    kind: Kind
    layout: bytes
    round: int
    client: int
    examples: int
    n: int
    b: int
    k: int
    trend_known: bool = False
    base_round: int | None = None
    gain: int = 0
    base_checksum: bytes = b""

    @classmethod
    def of(cls, message: Message, layout: ParameterLayout, k: int, base: Base | None, gain: int) -> Header:
        """Return the header of a message with ``k`` survivors.

        Raises:
            ArgumentError: a number is out of the format's range.
        """
        for name, number, least, most in (
            ("round", message.round, 0, _U32),
            ("client", message.client, -1, _U32 - 1),
            ("num_examples", message.num_examples, 0, (1 << 64) - 1),
            ("the number of parameters", layout.n, 1, _U32),
        ):
            if not least <= number <= most:
                raise ArgumentError(f"{name} = {number} must be from {least} to {most} to be sent")
        reference = (None, 0, b"") if base is None else (base.round, gain, base.reference(gain))
        return cls(
            *(message.kind, bytes.fromhex(layout.digest), message.round, message.client, message.num_examples),
            *(layout.n, layout.b, k, message.trend_known, *reference),
        )

    def write(self) -> bytes:
        """Return the header as bytes."""
        flags = (0 if self.base_round is None else _HAS_BASE) | (_TREND_KNOWN if self.trend_known else 0)
        numbers = (self.round, self.client + 1, self.examples, self.n, self.b, self.k)
        out = _MAGIC + bytes([_VERSION, self.kind, flags]) + self.layout + b"".join(map(varint, numbers))
        if self.base_round is not None:
            out += varint(self.base_round) + bytes([self.gain]) + self.base_checksum
        return out

    @classmethod
    def read(cls, reader: Reader) -> Header:
        """Read a header after magic and version, which were checked already.

        Raises:
            WireError: a field is malformed or contradicts another.
        """
        kind, flags = reader.byte(), reader.byte()
        if kind not in Kind.__members__.values():
            raise WireError(f"header: kind {kind} is unknown")
        if flags & ~(_HAS_BASE | _TREND_KNOWN):
            raise WireError(f"header: flags {flags:#04x} are unknown")
        layout = reader.take(8)
        round = reader.varint("round", _U32)
        client = reader.varint("client", _U32) - 1
        examples = reader.varint("examples")
        n, b = reader.varint("the number of parameters", _U32), reader.varint("the number of buffers", _U32)
        k = reader.varint("the number of survivors", n)
        reference: tuple[int | None, int, bytes] = (None, 0, b"")
        if flags & _HAS_BASE:
            reference = (reader.varint("the base's round", _U32), reader.byte(), reader.take(8))
        name = Kind(kind).name.lower()
        if (kind == Kind.UPDATE) != (examples > 0):
            raise WireError(f"header: {examples} examples in a message of kind {name}")
        if flags and kind not in (Kind.BROADCAST, Kind.UPDATE):
            raise WireError(f"header: flags {flags:#04x} in a message of kind {name}")
        if flags & _TREND_KNOWN and kind != Kind.BROADCAST:
            raise WireError(f"header: flags {flags:#04x} in a message of kind {name}")
        if kind == Kind.NEED_FULL and k:
            raise WireError(f"header: {k} survivors in a message of kind {name}")
        return cls(Kind(kind), layout, round, client, examples, n, b, k, bool(flags & _TREND_KNOWN), *reference)


@dataclass(frozen=True, eq=False)
class Frame:
    """A message taken apart, its sections still encoded.

    Attributes:
        header: the fields before the sections.
        sections: encoding byte and content of every name in :data:`SECTIONS`.
        header_bytes: length of the header.
    """

    header: Header
    sections: dict[str, Section]
    header_bytes: int

    def section_bytes(self, name: str) -> int:
        """Return a section's length with its encoding byte and its own length's bytes."""
        content = self.sections[name][1]
        return 1 + len(varint(len(content))) + len(content)


def write_frame(header: Header, sections: dict[str, Section]) -> bytes:
    """Join header, sections and checksum."""
    parts = [header.write()]
    for name in SECTIONS:
        coding, content = sections.get(name, (0, b""))
        parts += [bytes([coding]) + varint(len(content)), content]
    body = b"".join(parts)
    return body + zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "little")


def read_frame(data: bytes) -> Frame:
    """Take a message apart: magic, version, checksum, header, sections, in this order.

    Raises:
        WireError: one of them is malformed; it names which.
    """
    if len(data) < _SHORTEST:
        raise WireError(f"message: {len(data)} bytes are fewer than the {_SHORTEST} of an empty one")
    if data[:4] != _MAGIC:
        raise WireError(f"header: magic {data[:4]!r} is not {_MAGIC!r}; this is no FedSparsify message")
    if data[4] != _VERSION:
        raise WireError(f"header: version {data[4]} is not supported; this reader knows version {_VERSION}")
    body = memoryview(data)[:-_CHECKSUM_BYTES]
    if zlib.crc32(body) != int.from_bytes(data[-_CHECKSUM_BYTES:], "little"):
        raise WireError("checksum: the message was damaged or cut on its way")
    reader = Reader(body, "header")
    reader.view(5)
    header = Header.read(reader)
    header_bytes = reader.at
    sections = {}
    for name in SECTIONS:
        reader.section = name
        coding = reader.byte()
        sections[name] = (coding, reader.take(reader.varint("its length")))
    reader.section = "message"
    reader.end()
    return Frame(header, sections, header_bytes)
