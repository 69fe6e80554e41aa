"""Takes a message apart for people: which section takes how many bytes, and what is in it."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import WireError
from .codec import open_message, read_metrics
from .floats import encoding_names
from .masks import mask_names, survivors_declared

__all__ = ["Explanation", "Section", "explain"]


@dataclass(frozen=True)
class Section:
    """One section of a message.

    Attributes:
        name: as ``FORMAT.md`` calls it.
        encoding: how it is coded.
        size: bytes, with its own two fields.
    """

    name: str
    encoding: str
    size: int


@dataclass(frozen=True)
class Explanation:
    """What can be said of a message without the network it belongs to.

    Attributes:
        kind: what it is for.
        round: the round it belongs to.
        sender: ``server`` or ``client K``.
        layout: sixteen hexadecimal digits that the network's messages share.
        reference: checksum of what it is coded against, or empty.
        parameters: n.
        survivors: k, or None where only the reference tells.
        num_examples: of the client, or 0.
        sections: in order; their sizes add up to that of the message.
    """

    kind: str
    round: int
    sender: str
    layout: str
    reference: str
    parameters: int
    survivors: int | None
    num_examples: int
    sections: tuple[Section, ...]


def explain(data: bytes) -> Explanation:
    """Take a message apart; values are not decoded.

    Raises:
        WireError: it is no message, or malformed.
    """
    head, reader = open_message(data)
    sections = [Section("header", "", reader.at)]

    def step(name: str, names: tuple[str, ...] = ()) -> bytes:
        begin = reader.at
        encoding, body = reader.section(name)
        if encoding >= len(names):
            raise WireError(f"{name}: encoding {encoding} is unknown")
        sections.append(Section(name, names[encoding], reader.at - begin))
        return bytes([encoding]) + body

    mask = step("mask", mask_names())
    survivors = survivors_declared(mask[0], mask[1:], head.n)
    if not head.n or (survivors or 0) > head.n:
        raise WireError(f"mask: {survivors} survivors are declared of {head.n} parameters")
    step("values", encoding_names())
    step("buffers", encoding_names())
    begin = reader.at
    read_metrics(reader)
    sections.append(Section("metrics", "", reader.at - begin))
    begin = reader.at
    vectors = reader.varint("memory")
    sections.append(Section("memory", "", reader.at - begin))
    for _ in range(vectors):
        begin = reader.at
        name = reader.name("memory")
        reader.section("memory")
        reader.section("memory")
        sections.append(Section(f"memory {name!r}", "", reader.at - begin))
    if reader.left:
        raise WireError(f"message: {reader.left} bytes follow the last section")
    sections.append(Section("checksum", "CRC-32", len(data) - reader.at))
    return Explanation(
        head.kind.name.lower(),
        head.round,
        "server" if head.client < 0 else f"client {head.client}",
        head.layout.hex(),
        f"{head.reference:08x}" if head.reference else "",
        head.n,
        survivors,
        head.num_examples,
        tuple(sections),
    )
