"""FORMAT.md written down a second time: a slow decoder that shares no line with the codec, and a builder of messages.

A message is a dictionary of its fields' bytes in between: ``split`` takes one apart, ``join`` puts one together and
adds the checksum, so that a test replaces the one field whose rule it breaks. A network is a list of names and shapes.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tests.wire.spec_bytes import (
    Array,
    Bytes,
    Malformed,
    bernoulli,
    bitmap,
    categorical,
    deflate,
    encode_bits,
    floats,
    need,
    section,
    split_section,
    varint,
)
from tests.wire.spec_vectors import (
    AS_REFERENCE,
    BFLOAT16,
    BITMAP,
    BY_CLASS,
    CODED,
    CODED_FLOATS,
    FLOAT32,
    FULL,
    INT8,
    WITHIN,
    Held,
    Tensors,
    predict,
    read_mask,
    read_vector,
    size_of,
)

__all__ = ["AS_REFERENCE", "BFLOAT16", "BITMAP", "BY_CLASS", "CODED", "CODED_FLOATS", "FLOAT32", "FULL", "INT8"]
__all__ += ["WITHIN", "Held", "Malformed", "Tensors", "bernoulli", "bitmap", "categorical", "deflate", "encode_bits"]
__all__ += ["floats", "predict", "section", "split_section", "varint"]

BROADCAST, UPDATE, MODEL, CHECKPOINT, REQUEST = 1, 2, 3, 4, 5
METRICS = {1: "loss", 2: "seconds", 3: "native"}
_START = ("magic", "version", "kind", "layout", "reference", "lean", "round", "sender", "examples", "n")
FIELDS = (*_START, "mask", "values", "buffers", "metrics", "memory", "checksum")


@dataclass
class Content:
    """What a message says."""

    kind: int
    round: int
    sender: int
    examples: int
    remember: bool
    mask: Array
    values: Array
    buffers: Array
    metrics: dict[str, float] = field(default_factory=dict)
    memory: dict[str, Array] = field(default_factory=dict)


def digest(parameters: Tensors, buffers: Tensors) -> bytes:
    def rows(tensors: Tensors) -> list[list[object]]:
        return [[name, list(shape)] for name, shape in tensors]

    text = json.dumps({"buffers": rows(buffers), "parameters": rows(parameters)}, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).digest()[:8]


def split(message: bytes) -> dict[str, bytes]:
    """Take a well-formed message apart into the bytes of each of FIELDS."""
    left, parts = Bytes(message), {}
    for name in FIELDS:
        start = left.at
        if name in ("magic", "reference", "checksum"):
            left.take(4)
        elif name in ("version", "kind", "lean"):
            left.take(1)
        elif name == "layout":
            left.take(8)
        elif name in ("round", "sender", "examples", "n"):
            left.varint()
        elif name in ("mask", "values", "buffers"):
            left.section()
        elif name == "metrics":
            for _ in range(left.varint()):
                left.take(4 + (0 if left.unpack("B") else left.unpack("B")))
        else:
            for _ in range(left.varint()):
                left.take(left.unpack("B"))
                left.section()
                left.section()
        parts[name] = message[start : left.at]
    need(left.at == len(message), "bytes after the checksum")
    return parts


def join(parts: Mapping[str, bytes]) -> bytes:
    """Put a message together, with its checksum."""
    assert set(parts) <= {*FIELDS, "more"}, parts
    return seal(b"".join(parts[name] for name in FIELDS[:-1]) + parts.get("more", b""))


def seal(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def parts_of(kind: int, parameters: Tensors, buffers: Tensors, /, **changed: bytes) -> dict[str, bytes]:
    """A message without reference, of a full mask and zeros, where ``changed`` does not say otherwise."""
    n, b = size_of(parameters), size_of(buffers)
    parts = {
        "magic": b"FSPM",
        "version": b"\2",
        "kind": bytes([kind]),
        "layout": digest(parameters, buffers),
        "reference": bytes(4),
        "lean": b"\0",
        "round": varint(0),
        "sender": varint(1 if kind in (UPDATE, REQUEST) else 0),
        "examples": varint(1 if kind == UPDATE else 0),
        "n": varint(n),
        "mask": section(FULL, b""),
        "values": section(FLOAT32, bytes(4 * n)),
        "buffers": section(FLOAT32, bytes(4 * b)),
        "metrics": varint(0),
        "memory": varint(0),
    }
    return {**parts, **changed}


def decode(message: bytes, parameters: Tensors, buffers: Tensors, held: Held | None = None) -> Content:
    """What a message says to a reader who holds ``held``."""
    parts = split(message)
    need(parts["checksum"] == struct.pack("<I", zlib.crc32(message[:-4])), "checksum")
    need(parts["magic"] == b"FSPM" and parts["version"] == b"\2", "magic or version")
    kind, lean = parts["kind"][0], parts["lean"][0] & 127
    remember = parts["lean"][0] > 127
    need(1 <= kind <= 5, "kind")
    need(parts["layout"] == digest(parameters, buffers), "layout")
    number = {name: Bytes(parts[name]).varint() for name in ("round", "sender", "examples", "n")}
    n = number["n"]
    need(n == size_of(parameters), "n")
    need((number["examples"] > 0) == (kind == UPDATE), "examples")
    reference = struct.unpack("<I", parts["reference"])[0]
    need(reference == 0 or (held is not None and reference == held.checksum), "reference")
    held = held if reference else None
    need(lean in (0, 2, 4, 6, 8) and (lean == 0 or (held is not None and held.drift is not None)), "lean")
    need(not remember or kind == BROADCAST, "remember")
    need((number["sender"] > 0) == (kind in (UPDATE, REQUEST)), "sender")
    need(reference == 0 or kind in (BROADCAST, UPDATE), "a file or request that refers to something")
    mask = read_mask(Bytes(parts["mask"]).section(), parameters, None if held is None else held.mask)
    values = read_vector(Bytes(parts["values"]).section(), *predict(held, lean, mask, parameters))
    b = size_of(buffers)
    expected = np.zeros(b, np.float32) if held is None else held.buffers
    content = Content(kind, number["round"], number["sender"], number["examples"], remember, mask, values, expected)
    content.buffers = read_vector(Bytes(parts["buffers"]).section(), expected, np.zeros(b, np.int64))
    need(kind != REQUEST or not (mask.any() or content.buffers.any()), "a request with a model")
    left = Bytes(parts["metrics"])
    declared = left.varint()
    need(declared <= 64, "more than 64 metrics")
    for _ in range(declared):
        code = left.unpack("B")
        need(code <= 3, "no such metric")
        name = METRICS[code] if code else _name(left)
        value = left.unpack("f")
        need(name not in content.metrics and math.isfinite(value), "a metric twice, or not finite")
        content.metrics[name] = value
    left = Bytes(parts["memory"])
    declared = left.varint()
    need(kind == CHECKPOINT or declared <= (4 if kind == UPDATE else 0), "memory that the kind may not have")
    for _ in range(declared):
        name = _name(left)
        where = read_mask(left.section(), parameters, None)
        k = int(where.sum())
        vector = np.zeros(n, np.float32)
        vector[where] = read_vector(left.section(), np.zeros(k, np.float32), np.zeros(k, np.int64))
        need(name not in content.memory, "a memory twice")
        content.memory[name] = vector
    return content


def _name(left: Bytes) -> str:
    length = left.unpack("B")
    need(1 <= length <= 64, "the length of a name")
    try:
        return left.take(length).decode("ascii")
    except UnicodeDecodeError as error:
        raise Malformed("a name is ASCII") from error
