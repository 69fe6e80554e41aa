"""Models as bytes, and back, as ``FORMAT.md`` beside this file specifies."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from ..errors import ArgumentError, WireError
from ..layout import ParameterLayout
from ..state import Floats, Mask, ModelState

__all__ = ["SERVER", "Kind", "Message", "decode", "encode"]

SERVER = 0xFFFFFFFF
"""The ``client`` of messages that the server sends."""

_MAGIC = b"FSPM"
_VERSION = 1
_HEADER = struct.Struct("<4sBBBBII8sQQQQIHH")
_CHECKSUM = struct.Struct("<I")
_FLOAT64 = struct.Struct("<d")
_FULL, _BITMAP, _AS_BASE = range(3)


class Kind(IntEnum):
    """What a message is for."""

    BROADCAST = 1
    UPDATE = 2
    MODEL = 3
    CHECKPOINT = 4


@dataclass(frozen=True, eq=False)
class Message:
    """A decoded message.

    Attributes:
        kind: what it is for.
        round: the round it belongs to; 0 before training.
        model: float32[n] parameters, bool[n] mask, float32[b] buffers.
        client: index of the sending client, or :data:`SERVER`.
        num_examples: size of the client's data in an update, else 0.
        metrics: figures measured by the sender.
        memory: named float32[n] vectors of a checkpoint.
    """

    kind: Kind
    round: int
    model: ModelState
    client: int = SERVER
    num_examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, Floats] = field(default_factory=dict)


def encode(message: Message, layout: ParameterLayout, base: Mask | None = None) -> bytes:
    """Encode a message.

    Args:
        message: what to send.
        layout: the network's layout; only its digest travels.
        base: bool[n], the mask that the receiver already holds; an equal mask is then not sent again.

    Raises:
        ArgumentError: the model does not fit the layout, or a name is not 1 to 64 ASCII characters.
    """
    model = message.model
    if model.w.shape != (layout.n,) or model.mask.shape != (layout.n,) or model.buffers.shape != (layout.b,):
        raise ArgumentError(
            f"a model of {model.w.shape} parameters, {model.mask.shape} mask positions and {model.buffers.shape}"
            f" buffers does not fit a network of {layout.n} parameters and {layout.b} buffers"
        )
    nonzero = model.nonzero
    reference = 0
    mask_bytes = b""
    if base is not None and np.array_equal(base, model.mask):
        encoding, reference = _AS_BASE, _crc(base)
    elif nonzero == layout.n:
        encoding = _FULL
    else:
        encoding, mask_bytes = _BITMAP, np.packbits(model.mask, bitorder="little").tobytes()
    values = model.w if nonzero == layout.n else model.w[model.mask]
    parts = [
        _HEADER.pack(
            *(_MAGIC, _VERSION, message.kind, encoding, 0, message.round, message.client),
            *(_digest(layout), layout.n, nonzero, layout.b, message.num_examples, reference),
            *(len(message.metrics), len(message.memory)),
        ),
        mask_bytes,
        _floats(values),
        _floats(model.buffers),
    ]
    for name, figure in message.metrics.items():
        parts += [_name(name), _FLOAT64.pack(figure)]
    for name, vector in message.memory.items():
        if vector.shape != (layout.n,):
            raise ArgumentError(f"memory {name} has shape {vector.shape} where ({layout.n},) is needed")
        parts += [_name(name), _floats(vector)]
    body = b"".join(parts)
    return body + _CHECKSUM.pack(zlib.crc32(body))


def decode(data: bytes, layout: ParameterLayout, base: Mask | None = None) -> Message:
    """Decode and check a message.

    Args:
        data: the message; trusted in nothing.
        layout: the reader's own layout, which bounds everything that is allocated.
        base: bool[n], the mask that an update may refer to.

    Raises:
        WireError: the message is malformed, damaged, not finite, or of another network or base; it names the section.
    """
    if len(data) < _HEADER.size + _CHECKSUM.size:
        raise WireError(
            f"message: {len(data)} bytes are fewer than the {_HEADER.size + _CHECKSUM.size} of an empty one"
        )
    fields = _HEADER.unpack_from(data)
    magic, version, kind, encoding, reserved, round, client = fields[:7]
    digest, n, nonzero, b, num_examples, reference, metrics, memory = fields[7:]
    if magic != _MAGIC:
        raise WireError(f"header: magic {magic!r} is not {_MAGIC!r}; this is no FedSparsify message")
    if version != _VERSION:
        raise WireError(f"header: version {version} is not supported; this reader knows version {_VERSION}")
    if zlib.crc32(memoryview(data)[: -_CHECKSUM.size]) != _CHECKSUM.unpack_from(data, len(data) - _CHECKSUM.size)[0]:
        raise WireError("checksum: the message was damaged or cut on its way")
    if kind not in Kind.__members__.values():
        raise WireError(f"header: kind {kind} is unknown")
    if encoding not in (_FULL, _BITMAP, _AS_BASE) or reserved != 0:
        raise WireError(f"header: mask encoding {encoding}, reserved {reserved} is unknown")
    if digest != _digest(layout) or n != layout.n or b != layout.b:
        raise WireError(f"header: the message is of another network ({n} parameters, {b} buffers)")
    if nonzero > n:
        raise WireError(f"header: {nonzero} survivors are more than the network's {n} parameters")
    if (kind == Kind.UPDATE) != (num_examples > 0):
        raise WireError(f"header: {num_examples} examples in a message of kind {Kind(kind).name.lower()}")
    if reference and encoding != _AS_BASE:
        raise WireError(f"header: base {reference:08x} in a message whose mask encoding {encoding} refers to none")
    if memory and kind != Kind.CHECKPOINT:
        raise WireError(f"header: {memory} memory vectors in a message of kind {Kind(kind).name.lower()}")

    reader = _Reader(data, _HEADER.size, len(data) - _CHECKSUM.size)
    mask = _decode_mask(reader, encoding, n, nonzero, base, reference)
    w = np.zeros(n, np.float32)
    w[mask] = reader.floats("values", nonzero)
    buffers = reader.floats("buffers", b)
    figures = {}
    for _ in range(metrics):
        name = reader.name("metrics")
        figures[name] = float(_FLOAT64.unpack(reader.take("metrics", _FLOAT64.size))[0])
        if not math.isfinite(figures[name]):
            raise WireError(f"metrics: {name} is {figures[name]}, which is not a finite number")
    vectors = {}
    for _ in range(memory):
        name = reader.name("memory")
        vectors[name] = reader.floats("memory", n)
    if len(figures) != metrics:
        raise WireError("metrics: two of them have one name")
    if len(vectors) != memory:
        raise WireError("memory: two vectors have one name")
    if reader.left:
        raise WireError(f"message: {reader.left} bytes follow the last section")
    return Message(Kind(kind), round, ModelState(w, mask, buffers), client, num_examples, figures, vectors)


class _Reader:
    """Takes bytes off the front of a message and never past its end."""

    def __init__(self, data: bytes, start: int, end: int) -> None:
        self._data, self._at, self._end = data, start, end

    @property
    def left(self) -> int:
        return self._end - self._at

    def take(self, section: str, size: int) -> bytes:
        if size > self.left:
            raise WireError(f"{section}: {size} bytes are declared, {self.left} are there")
        self._at += size
        return self._data[self._at - size : self._at]

    def floats(self, section: str, count: int) -> Floats:
        values = np.frombuffer(self.take(section, 4 * count), "<f4").astype(np.float32)
        if not np.isfinite(values).all():
            bad = int(np.flatnonzero(~np.isfinite(values))[0])
            raise WireError(f"{section}: element {bad} is {values[bad]}, which is not a finite number")
        return values

    def name(self, section: str) -> str:
        raw = self.take(section, self.take(section, 1)[0])
        if not 1 <= len(raw) <= 64 or not raw.isascii():
            raise WireError(f"{section}: a name of {len(raw)} bytes is not 1 to 64 ASCII characters")
        return raw.decode("ascii")


def _decode_mask(reader: _Reader, encoding: int, n: int, nonzero: int, base: Mask | None, reference: int) -> Mask:
    if encoding == _FULL:
        mask = np.ones(n, np.bool_)
    elif encoding == _BITMAP:
        packed = np.frombuffer(reader.take("mask", (n + 7) // 8), np.uint8)
        if n % 8 and packed[-1] >> (n % 8):
            raise WireError("mask: bits beyond the last parameter are set")
        mask = np.unpackbits(packed, count=n, bitorder="little").view(np.bool_)
    elif base is None:
        raise WireError("mask: it refers to a base, but the reader holds none")
    elif _crc(base) != reference:
        raise WireError(f"mask: it refers to base {reference:08x}, but the reader holds {_crc(base):08x}")
    else:
        mask = base
    survivors = int(np.count_nonzero(mask))
    if survivors != nonzero:
        raise WireError(f"mask: {survivors} positions are set, but the header declares {nonzero}")
    return mask


def _digest(layout: ParameterLayout) -> bytes:
    return bytes.fromhex(layout.digest)


def _crc(mask: Mask) -> int:
    return zlib.crc32(np.packbits(mask, bitorder="little").tobytes())


def _floats(values: Floats) -> bytes:
    return values.astype("<f4", copy=False).tobytes()


def _name(name: str) -> bytes:
    raw = name.encode("ascii", "replace")
    if not 1 <= len(raw) <= 64 or not name.isascii():
        raise ArgumentError(f"the name {name!r} is not 1 to 64 ASCII characters")
    return bytes([len(raw)]) + raw
