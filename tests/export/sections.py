"""Cuts a model file into its sections and puts it together again, for tests that change one."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

from fedsparsify.export.artifact import SECTIONS
from fedsparsify.wire.varint import pack_varint, unpack_varint

__all__ = ["body_of", "join", "split"]


def split(data: bytes) -> dict[str, bytes]:
    """Cut an artifact into its sections' bodies, each with its encoding in front."""
    at, parts = 5, {}
    for name in SECTIONS:
        size, start = unpack_varint(data, at + 1, name)
        parts[name] = data[at : at + 1] + data[start : start + size]
        at = start + size
    return parts


def body_of(parts: Mapping[str, bytes], head: bytes = b"FSPZ\1") -> bytes:
    """Return all of an artifact but its checksum."""
    return head + b"".join(p[:1] + pack_varint(len(p) - 1) + p[1:] for p in parts.values())


def join(parts: Mapping[str, bytes], head: bytes = b"FSPZ\1", tail: bytes = b"") -> bytes:
    """Return an artifact of its sections, sealed by its checksum."""
    body = body_of(parts, head) + tail
    return body + struct.pack("<I", zlib.crc32(body))
