"""FORMAT.md written down a second time: a slow encoder that shares no line with the codec, and breaks rules on request.

Every header field can be overridden, so a test states the one rule that it breaks. Checksums are computed bit by bit.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence

from fedsparsify.layout import ParameterLayout, Slot

SERVER = 0xFFFFFFFF
BROADCAST, UPDATE, MODEL, CHECKPOINT = 1, 2, 3, 4
FULL, BITMAP, AS_BASE = 0, 1, 2

HEADER_FIELDS = (
    ("magic", "4s"),
    ("version", "B"),
    ("kind", "B"),
    ("mask_encoding", "B"),
    ("reserved", "B"),
    ("round", "I"),
    ("client", "I"),
    ("layout", "8s"),
    ("n", "Q"),
    ("k", "Q"),
    ("b", "Q"),
    ("examples", "Q"),
    ("base", "I"),
    ("metrics", "H"),
    ("memory", "H"),
)
HEADER_SIZE = 64


def crc32(data: bytes) -> int:
    """CRC-32 as in ISO 3309, by its definition: the reversed polynomial 0xEDB88320, a bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0xEDB88320 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def bitmap(mask: Iterable[bool]) -> bytes:
    """Parameter i is bit i mod 8, least significant first, of byte i div 8."""
    bits = list(mask)
    out = bytearray(math.ceil(len(bits) / 8))
    for i, bit in enumerate(bits):
        out[i // 8] |= bool(bit) << (i % 8)
    return bytes(out)


def digest_of(layout: ParameterLayout) -> bytes:
    """First 8 bytes of the SHA-256 of the layout as JSON."""

    def rows(slots: Sequence[Slot]) -> list[list[object]]:
        return [[slot.name, list(slot.shape)] for slot in slots]

    text = json.dumps({"buffers": rows(layout.buffers), "parameters": rows(layout.parameters)})
    return hashlib.sha256(text.encode("ascii")).digest()[:8]


def floats(values: Iterable[float]) -> bytes:
    return b"".join(struct.pack("<f", value) for value in values)


def named(name: bytes, content: bytes, length: int | None = None) -> bytes:
    return bytes([len(name) if length is None else length]) + name + content


def seal(body: bytes) -> bytes:
    """Add the checksum."""
    return body + struct.pack("<I", crc32(body))


def message(
    layout: ParameterLayout,
    *,
    kind: int = BROADCAST,
    mask: Sequence[bool],
    values: Sequence[float],
    buffers: Sequence[float] = (),
    base: Sequence[bool] | None = None,
    metrics: Sequence[tuple[bytes, float]] = (),
    memory: Sequence[tuple[bytes, Sequence[float]]] = (),
    mask_bytes: bytes | None = None,
    extra: bytes = b"",
    header: Mapping[str, object] | None = None,
) -> bytes:
    """Encode what the arguments say; ``header``, ``mask_bytes`` and ``extra`` replace or add what a test breaks."""
    if base is not None:
        encoding, section = AS_BASE, b""
    elif all(mask):
        encoding, section = FULL, b""
    else:
        encoding, section = BITMAP, bitmap(mask)
    fields: dict[str, object] = {
        "magic": b"FSPM",
        "version": 1,
        "kind": kind,
        "mask_encoding": encoding,
        "reserved": 0,
        "round": 0,
        "client": SERVER,
        "layout": digest_of(layout),
        "n": len(mask),
        "k": sum(map(bool, mask)),
        "b": len(buffers),
        "examples": 1 if kind == UPDATE else 0,
        "base": 0 if base is None else crc32(bitmap(base)),
        "metrics": len(metrics),
        "memory": len(memory),
    }
    unknown = set(header or {}) - set(fields)
    assert not unknown, unknown
    fields.update(header or {})
    packed = b"".join(struct.pack("<" + code, fields[name]) for name, code in HEADER_FIELDS)
    assert len(packed) == HEADER_SIZE
    body = [packed, section if mask_bytes is None else mask_bytes, floats(values), floats(buffers)]
    body += [named(name, struct.pack("<d", value)) for name, value in metrics]
    body += [named(name, floats(vector)) for name, vector in memory]
    return seal(b"".join(body) + extra)
