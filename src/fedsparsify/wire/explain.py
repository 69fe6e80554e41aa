"""A message taken apart for people: what it is, and where its bytes go."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import WireError
from .bits import Reader
from .header import SECTIONS, Frame, read_frame
from .masks import MaskCoding
from .values import Coding

__all__ = ["Explanation", "Row", "explain"]

_CHECKPOINT_DIGEST = 32
_CHECKSUM_BYTES = 4


@dataclass(frozen=True)
class Row:
    """One part of a message.

    Attributes:
        section: its name.
        encoding: how it is written.
        size: its length in bytes, with its frame.
    """

    section: str
    encoding: str
    size: int


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` finds.

    Attributes:
        facts: name and text of what the header says, in the order to show them.
        rows: the parts, in the order of the message; their sizes add up to the whole.
        parameters: n.
        survivors: k.
        size: the message's length in bytes.
    """

    facts: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    parameters: int
    survivors: int
    size: int

    def bits(self, size: int) -> tuple[float, float | None]:
        """Return the bits a parameter and a survivor (None without survivors) that ``size`` bytes are."""
        return 8 * size / self.parameters, 8 * size / self.survivors if self.survivors else None


def explain(data: bytes) -> Explanation:
    """Take a message, a saved model or a checkpoint apart; no network and no base is needed.

    Raises:
        WireError: it is none of them, or its frame is damaged. Sections are not decoded.
    """
    before: tuple[Row, ...] = ()
    if data[:4] != b"FSPM" and data[_CHECKPOINT_DIGEST : _CHECKPOINT_DIGEST + 4] == b"FSPM":
        before = (Row("settings", "SHA-256", _CHECKPOINT_DIGEST),)
        data = data[_CHECKPOINT_DIGEST:]
    frame = read_frame(data)
    header = frame.header
    if header.n == 0:
        raise WireError("header: a message of a network without parameters")
    facts = [
        ("kind", header.kind.name.lower().replace("_", "-")),
        ("round", str(header.round)),
        ("from", "server" if header.client < 0 else f"client {header.client}"),
        ("network", header.layout.hex()),
        ("parameters", f"{header.n:,}"),
        ("survivors", f"{header.k:,} ({1 - header.k / header.n:.2%} pruned)"),
        ("buffers", f"{header.b:,}"),
        ("base", _base(frame)),
    ]
    if header.examples:
        facts.append(("examples", f"{header.examples:,}"))
    rows = [*before, Row("header", "", frame.header_bytes)]
    for name in SECTIONS:
        coding, content = frame.sections[name]
        rows.append(Row(name, _encoding(name, coding, content), frame.section_bytes(name)))
    rows.append(Row("checksum", "CRC-32", _CHECKSUM_BYTES))
    return Explanation(tuple(facts), tuple(rows), header.n, header.k, sum(row.size for row in rows))


def _base(frame: Frame) -> str:
    header = frame.header
    if header.base_round is None:
        return "none, the message is complete"
    trend = f" + {header.gain / 128:.2f} of its trend" if header.gain else ""
    return f"round {header.base_round}{trend} ({header.base_checksum.hex()})"


def _encoding(section: str, coding: int, content: bytes) -> str:
    if section == "mask":
        return _name(MaskCoding, coding)
    if not content:
        return "empty"
    if section == "metrics":
        return ", ".join(_metric_names(content))
    return "vectors" if section == "memory" else _name(Coding, coding)


def _name(codings: type[MaskCoding] | type[Coding], coding: int) -> str:
    known = {int(member): member.name.lower().replace("_", " ") for member in codings}
    return known.get(coding, f"unknown ({coding})")


def _metric_names(content: bytes) -> list[str]:
    reader = Reader(content, "metrics")
    names = []
    while reader.left:
        names.append(reader.text())
        reader.view(8)
    return names
