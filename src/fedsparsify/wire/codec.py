"""Messages as bytes, and back, as ``FORMAT.md`` beside this file specifies."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from ..errors import ArgumentError, StaleReferenceError, WireError
from ..layout import ParameterLayout
from ..state import Floats, ModelState
from .floats import Coding, decode_floats, encode_floats
from .masks import decode_mask, encode_mask
from .reader import Reader
from .reference import LEANS, Reference
from .varint import pack_varint

__all__ = [
    "SERVER",
    "Head",
    "Kind",
    "Message",
    "decode",
    "encode",
    "open_message",
    "read_metrics",
    "request_full",
]

SERVER = -1
"""The ``client`` of messages that the server sends."""

_MAGIC = b"FSPM"
_VERSION = 2
_HEADER = struct.Struct("<4sBB8sIB")  # magic, version, kind, layout, reference, lean
_CHECKSUM = struct.Struct("<I")
_FLOAT32 = struct.Struct("<f")
_REMEMBER = 0x80  # beside the lean
_METRIC_NAMES = ("", "loss", "seconds", "native")  # by their codes; code 0 is followed by a name

_MOST_METRICS = 64
_MOST_VECTORS = 4  # of an update

_SAMPLES = 4096
"""Survivors that the lean is chosen by: enough for its fraction, and nothing beside the coding itself."""


class Kind(IntEnum):
    """What a message is for."""

    BROADCAST = 1
    UPDATE = 2
    MODEL = 3
    CHECKPOINT = 4
    REQUEST = 5


_OF_CLIENTS = (Kind.UPDATE, Kind.REQUEST)
_REFERRING = (Kind.BROADCAST, Kind.UPDATE)


@dataclass(frozen=True, eq=False)
class Message:
    """A decoded message.

    Attributes:
        kind: what it is for; a request asks for a broadcast that refers to nothing, and its own model is empty.
        round: the round it belongs to; 0 before training.
        model: parameters, mask and buffers.
        client: index of the sending client, or :data:`SERVER`.
        num_examples: size of the client's data in an update, else 0.
        metrics: figures measured by the sender, in float32.
        memory: named float32[n] vectors of a checkpoint or update.
        remember: in a broadcast, that the server keeps the mean of each client's steps for the next update to be
            coded against, and clients are to do the same.
        refers: whether it was coded against something that its reader holds; set by :func:`decode`.
    """

    kind: Kind
    round: int
    model: ModelState
    client: int = SERVER
    num_examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, Floats] = field(default_factory=dict)
    remember: bool = False
    refers: bool = False


def encode(
    message: Message, layout: ParameterLayout, reference: Reference | None = None, coding: Coding = "float32"
) -> bytes:
    """Encode a message, each section in the smallest of its encodings (values by expected size).

    Args:
        message: what to send.
        layout: the network's layout; only its digest and its number of parameters travel.
        reference: what the receiver holds already.
        coding: of the parameters, which are rounded only where that makes them smaller; buffers and memory never are.

    Raises:
        ArgumentError: the model does not fit the layout, a name is not 1 to 64 ASCII characters, or a metric is beyond
            float32.
    """
    model = message.model
    if model.mask.shape != (layout.n,) or model.buffers.shape != (layout.b,):
        raise ArgumentError(
            f"a model of {model.mask.shape} parameters and {model.buffers.shape} buffers does not fit a network of"
            f" {layout.n} parameters and {layout.b} buffers"
        )
    # Rounded values must not depend on what is remembered, so they lean on nothing: a resumed run gives the same bits.
    lean = 0 if reference is None or coding != "float32" else _best_lean(model, reference)
    parts = [
        _HEADER.pack(
            *(_MAGIC, _VERSION, message.kind, bytes.fromhex(layout.digest)),
            *(0 if reference is None else reference.checksum, lean | (_REMEMBER if message.remember else 0)),
        ),
        *map(pack_varint, (message.round, message.client + 1, message.num_examples, layout.n)),
        _section(*encode_mask(model.mask, layout, reference)),
        _section(*_encode_values(model, reference, lean, coding)),
        _section(*encode_floats(model.buffers, None if reference is None else reference.model.buffers)),
        pack_varint(len(message.metrics)),
        *(_metric(name, figure) for name, figure in message.metrics.items()),
        pack_varint(len(message.memory)),
    ]
    for name, vector in message.memory.items():
        if vector.shape != (layout.n,):
            raise ArgumentError(f"memory {name} has shape {vector.shape} where ({layout.n},) is needed")
        kept = vector.astype(np.float32, copy=False).view(np.int32) != 0  # all but +0
        parts += [
            _name(name),
            _section(*encode_mask(kept, layout)),
            _section(*encode_floats(vector[kept])),
        ]
    body = b"".join(parts)
    return body + _CHECKSUM.pack(zlib.crc32(body))


def decode(
    data: bytes, layout: ParameterLayout, reference: Reference | None = None, expected: Kind | None = None
) -> Message:
    """Decode and check a message.

    Args:
        data: the message; trusted in nothing.
        layout: the reader's own layout, which bounds everything that is allocated.
        reference: what the reader holds; it is used if the message refers to it.
        expected: the kind that the reader takes; others are refused by their header. From a peer it must be given: a
            checkpoint may hold any number of vectors.

    Raises:
        StaleReferenceError: the message refers to something that the reader does not hold.
        WireError: the message is malformed, damaged, not finite or of another network; it names the section.
    """
    head, reader = open_message(data)
    kind = head.kind
    if expected is not None and kind != expected:
        raise WireError(
            f"header: a message of kind {kind.name.lower()} where one of kind {expected.name.lower()} is due"
        )
    if head.layout != bytes.fromhex(layout.digest) or head.n != layout.n:
        raise WireError(
            f"header: the message is of another network ({head.n} parameters, where this one has {layout.n})"
        )
    if not head.reference:
        reference = None
    elif reference is None or reference.checksum != head.reference:
        held = "nothing" if reference is None else f"{reference.checksum:08x}"
        raise StaleReferenceError(f"header: the message refers to {head.reference:08x}, but the receiver holds {held}")

    if head.lean and (reference is None or reference.drift is None):
        raise WireError(f"header: a lean of {head.lean}, but what the message refers to has no drift")

    mask = decode_mask(*reader.section("mask"), layout, reference)
    prediction, classes = (None, None) if reference is None else reference.predict_at(mask, head.lean)
    count = int(np.count_nonzero(mask)) if prediction is None else len(prediction)
    values = decode_floats(*reader.section("values"), count, prediction, classes, "values")
    old = None if reference is None else reference.model.buffers
    buffers = decode_floats(*reader.section("buffers"), layout.b, old, None, "buffers")
    model = ModelState.of_values(values, mask, buffers)
    if kind == Kind.REQUEST and (count or buffers.any()):
        raise WireError(f"values: a request carries no model, but this one has {count} survivors")
    metrics = read_metrics(reader)
    memory = _decode_memory(reader, layout, kind)
    if reader.left:
        raise WireError(f"message: {reader.left} bytes follow the last section")
    return Message(
        kind, head.round, model, head.client, head.num_examples, metrics, memory, head.remember, reference is not None
    )


def request_full(layout: ParameterLayout, round: int, client: int) -> bytes:
    """Encode a client's request for a broadcast that refers to nothing."""
    nothing = ModelState.of_values(
        np.zeros(0, np.float32), np.zeros(layout.n, np.bool_), np.zeros(layout.b, np.float32)
    )
    return encode(Message(Kind.REQUEST, round, nothing, client), layout)


@dataclass(frozen=True)
class Head:
    """A message's header; the fields of :class:`Message`, and what it is coded against.

    Attributes:
        layout: eight bytes of the network's digest.
        reference: checksum of the reference, 0 for none.
        lean: eighths of its drift in the prediction.
        n: number of parameters.
    """

    kind: Kind
    layout: bytes
    reference: int
    lean: int
    remember: bool
    round: int
    client: int
    num_examples: int
    n: int


def open_message(data: bytes) -> tuple[Head, Reader]:
    """Check checksum and header; the reader stands at the mask.

    Raises:
        WireError: it is no message, of another version, damaged, or its header contradicts itself.
    """
    least = _HEADER.size + _CHECKSUM.size
    if len(data) < least:
        raise WireError(f"message: {len(data)} bytes are fewer than the {least} of an empty one")
    magic, version, kind, layout, reference, lean = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise WireError(f"header: magic {magic!r} is not {_MAGIC!r}; this is no FedSparsify message")
    if version != _VERSION:
        raise WireError(f"header: version {version} is not supported; this reader knows version {_VERSION}")
    if zlib.crc32(memoryview(data)[: -_CHECKSUM.size]) != _CHECKSUM.unpack_from(data, len(data) - _CHECKSUM.size)[0]:
        raise WireError("checksum: the message was damaged or cut on its way")
    if kind not in Kind.__members__.values():
        raise WireError(f"header: kind {kind} is unknown")
    reader = Reader(data, _HEADER.size, len(data) - _CHECKSUM.size)
    round, sender, num_examples, n = (reader.varint("header") for _ in range(4))
    head = Head(
        *(Kind(kind), layout, reference, lean & ~_REMEMBER, bool(lean & _REMEMBER)),
        *(round, sender - 1, num_examples, n),
    )
    kind_name = head.kind.name.lower()
    if head.lean not in LEANS:
        raise WireError(f"header: a lean of {head.lean} is unknown")
    if head.remember and kind != Kind.BROADCAST:
        raise WireError(f"header: only a broadcast tells to remember, not a message of kind {kind_name}")
    if (kind == Kind.UPDATE) != (num_examples > 0):
        raise WireError(f"header: {num_examples} examples in a message of kind {kind_name}")
    if (kind in _OF_CLIENTS) != (sender > 0):
        raise WireError(f"header: sender {sender} of a message of kind {kind_name}")
    if reference and kind not in _REFERRING:
        raise WireError(f"header: a message of kind {kind_name} refers to nothing, but this one to {reference:08x}")
    return head, reader


def read_metrics(reader: Reader) -> dict[str, float]:
    """Take the metrics off a message.

    Raises:
        WireError: one of them is malformed.
    """
    metrics: dict[str, float] = {}
    declared = reader.varint("metrics")
    if declared > _MOST_METRICS:
        raise WireError(f"metrics: {declared} are more than {_MOST_METRICS}")
    for _ in range(declared):
        code = reader.take("metrics", 1)[0]
        if code >= len(_METRIC_NAMES):
            raise WireError(f"metrics: code {code} is unknown")
        name = _METRIC_NAMES[code] or reader.name("metrics")
        (figure,) = _FLOAT32.unpack(reader.take("metrics", _FLOAT32.size))
        if not np.isfinite(figure):
            raise WireError(f"metrics: {name!r} is {figure}, which is not a finite number")
        if name in metrics:
            raise WireError(f"metrics: two of them are called {name!r}")
        metrics[name] = figure
    return metrics


def _encode_values(model: ModelState, reference: Reference | None, lean: int, coding: Coding) -> tuple[int, bytes]:
    if reference is None:
        return encode_floats(model.values, coding=coding)
    return encode_floats(model.values, *reference.predict_at(model.mask, lean), coding)


def _best_lean(model: ModelState, reference: Reference) -> int:
    """Choose how much of the drift to add, by a sample of the survivors."""
    drift = reference.drift
    if drift is None or len(drift) == 0:
        return 0
    sample = slice(None, None, 1 + len(drift) // _SAMPLES)
    step = drift[sample]
    kept = model.mask[reference.survivors[sample]]

    def bits(lean: int) -> float:
        return float(np.log2(np.abs(moved - np.float32(lean / 8) * step)[kept] + np.float32(1e-12)).sum())

    with np.errstate(over="ignore", invalid="ignore"):
        moved = (model.at(reference.model.mask) - reference.model.values)[sample]
        return min(LEANS, key=bits)


def _section(encoding: int, data: bytes) -> bytes:
    return bytes([encoding]) + pack_varint(len(data)) + data


def _name(name: str) -> bytes:
    raw = name.encode("ascii", "replace")
    if not 1 <= len(raw) <= 64 or not name.isascii():
        raise ArgumentError(f"the name {name!r} is not 1 to 64 ASCII characters")
    return bytes([len(raw)]) + raw


def _metric(name: str, figure: float) -> bytes:
    code = bytes([_METRIC_NAMES.index(name)]) if name in _METRIC_NAMES[1:] else b"\0" + _name(name)
    try:
        return code + _FLOAT32.pack(figure)
    except OverflowError:
        raise ArgumentError(f"the metric {name} is {figure}, which is beyond float32") from None


def _decode_memory(reader: Reader, layout: ParameterLayout, kind: Kind) -> dict[str, Floats]:
    memory: dict[str, Floats] = {}
    declared = reader.varint("memory")
    most = _MOST_VECTORS if kind == Kind.UPDATE else 0
    if declared > most and kind != Kind.CHECKPOINT:
        raise WireError(
            f"memory: {declared} vectors in a message of kind {kind.name.lower()}, which holds at most {most}"
        )
    for _ in range(declared):
        name = reader.name("memory")
        if name in memory:
            raise WireError(f"memory: two vectors are called {name!r}")
        mask = decode_mask(*reader.section("memory"), layout, section="memory")
        count = int(np.count_nonzero(mask))
        values = decode_floats(*reader.section("memory"), count, None, None, "memory")
        memory[name] = ModelState.of_values(values, mask).w
    return memory
