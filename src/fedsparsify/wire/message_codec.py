"""Messages as bytes, and back, as ``FORMAT.md`` beside this file specifies."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, WireError
from ..layout import ParameterLayout
from ..state import Floats, Mask, ModelState
from .bits import Reader, varint
from .header import Header, read_frame, write_frame
from .masks import MaskCoding, decode_mask, encode_mask
from .messages import Base, BaseError, Kind, Message, SparseMessage
from .values import LOSSLESS, Coding, ValueCoding, check_coding, decode_values, encode_values, round_values

__all__ = ["decode", "decode_sparse", "encode", "need_full", "rounded"]

Indices = NDArray[np.int64]

_FLOAT64 = struct.Struct("<d")
_IN_BASE = (MaskCoding.SAME, MaskCoding.BITMAP_IN_BASE, MaskCoding.TENSORS_IN_BASE)
_MOST_NAMES = 1000


def encode(
    message: Message, layout: ParameterLayout, base: Base | None = None, values: ValueCoding = "float32"
) -> bytes:
    """Encode a message, each section in the smallest of its encodings.

    Args:
        message: what to send.
        layout: the network's layout; only its digest and sizes travel.
        base: what the receiver already holds: a model of any earlier round, with any survivors.
        values: how surviving values travel; all but ``float32`` round them (see :func:`rounded`).

    Raises:
        ArgumentError: the model or base does not fit the layout, or a name or number cannot be written.
        WireError: a number to send is NaN or infinite; it names the section.
    """
    check_coding(values)
    _check_fit(message, layout, base)
    model = message.model
    indices = np.flatnonzero(model.mask)
    sections: dict[str, tuple[int, bytes]] = {}
    gain = 0
    if base is None:
        sections["mask"] = encode_mask(model.mask, _bounds(layout), in_base=False)
        sections["values"] = encode_values(model.w[indices], None, values)
    else:
        inside = model.mask[base.indices]
        if np.count_nonzero(inside) == indices.size:
            sections["mask"] = encode_mask(inside, _bounds(layout, base), in_base=True)
        else:
            sections["mask"] = encode_mask(model.mask, _bounds(layout), in_base=False)
            fresh = indices[~_held(indices, base)]
            sections["fresh"] = encode_values(model.w[fresh], None, values, "fresh")
        gain = _gain(model, base, inside)
        held = _only(base.indices, inside)
        sections["values"] = encode_values(model.w[held], _only(base.predicted(gain), inside), values)
    sections["buffers"] = encode_values(model.buffers, None if base is None else base.buffers, section="buffers")
    sections["metrics"] = (0, _write_metrics(message.metrics))
    sections["memory"] = (0, _write_memory(message.memory, layout.n))
    return write_frame(Header.of(message, layout, indices.size, base, gain), sections)


def decode(data: bytes, layout: ParameterLayout, base: Base | None = None) -> Message:
    """Decode and check a message, as :func:`decode_sparse` does, and make its model dense."""
    return decode_sparse(data, layout, base).dense()


def decode_sparse(data: bytes, layout: ParameterLayout, base: Base | None = None) -> SparseMessage:
    """Decode and check a message; time and memory follow its survivors, not n.

    Args:
        data: the message; trusted in nothing.
        layout: the reader's own layout, which bounds everything that is allocated.
        base: the base that the message may refer to; not used if it refers to none.

    Raises:
        WireError: the message is malformed, damaged, not finite, or of another network or base; it names the section.
    """
    frame = read_frame(data)
    header, sections = frame.header, frame.sections
    if header.layout != bytes.fromhex(layout.digest) or (header.n, header.b) != (layout.n, layout.b):
        raise WireError(f"header: the message is of another network ({header.n} parameters, {header.b} buffers)")
    base = _agreed_base(header, base)
    indices, among = _read_mask(*sections["mask"], layout, base, header.k)
    if base is None:
        values = decode_values(*sections["values"], header.k, None, "values")
        held = header.k
    else:
        predicted = base.predicted(header.gain)
        if among is None:  # the mask may have grown: which of its positions the base holds
            known = _held(indices, base)
            among = np.searchsorted(base.indices, indices[known])
        held = among.size
        values = decode_values(*sections["values"], held, _at(predicted, among), "values")
        if held < header.k:
            both = np.empty(header.k, np.float32)
            both[known] = values
            both[~known] = decode_values(*sections["fresh"], header.k - held, None, "fresh")
            values = both
    if held == header.k and sections["fresh"] != (0, b""):
        raise WireError("fresh: values for new positions, but the mask has none")
    if sections["buffers"][0] not in LOSSLESS:
        raise WireError(f"buffers: encoding {sections['buffers'][0]} is unknown or lossy")
    buffers = decode_values(*sections["buffers"], header.b, None if base is None else base.buffers, "buffers")
    return SparseMessage(
        header.kind,
        header.round,
        header.n,
        indices,
        values,
        buffers,
        header.client,
        header.examples,
        read_metrics(*sections["metrics"]),
        _read_memory(*sections["memory"], header),
        header.trend_known,
        header.base_round,
    )


def need_full(layout: ParameterLayout, round: int, client: int) -> bytes:
    """Encode the answer of a client that does not hold a broadcast's base: it asks for a full message."""
    nothing = ModelState(np.zeros(layout.n, np.float32), np.zeros(layout.n, np.bool_), np.zeros(layout.b, np.float32))
    return encode(Message(Kind.NEED_FULL, round, nothing, client), layout)


def rounded(model: ModelState, base: Base | None, values: ValueCoding) -> ModelState:
    """Return the model that a receiver decodes when this one is sent with a value coding, bit for bit."""
    check_coding(values)
    if values == "float32":
        return model
    w = np.zeros_like(model.w)
    new = model.mask
    if base is not None:
        inside = model.mask[base.indices]
        held = base.indices[inside]
        new = model.mask.copy()
        new[held] = False
        w[held] = round_values(model.w[held], base.predicted(_gain(model, base, inside))[inside], values)
    w[new] = round_values(model.w[new], None, values)
    return ModelState(w, model.mask, model.buffers)


def read_metrics(coding: int, data: bytes) -> dict[str, float]:
    """Read the metrics section.

    Raises:
        WireError: it is malformed, or a figure is not finite.
    """
    reader = Reader(data, "metrics")
    if coding:
        raise WireError(f"metrics: encoding {coding} is unknown")
    figures: dict[str, float] = {}
    while reader.left:
        name = reader.text()
        figure = float(_FLOAT64.unpack(reader.take(_FLOAT64.size))[0])
        if name in figures:
            raise WireError(f"metrics: two of them have the name {name}")
        if not math.isfinite(figure):
            raise WireError(f"metrics: {name} is {figure}, which is not a finite number")
        if len(figures) == _MOST_NAMES:
            raise WireError(f"metrics: there are more than {_MOST_NAMES}")
        figures[name] = figure
    return figures


# The base


def _agreed_base(header: Header, base: Base | None) -> Base | None:
    if header.base_round is None:
        return None
    refers = f"base: it refers to the model of round {header.base_round}"
    if base is None or base.round != header.base_round:
        holds = "none" if base is None else f"that of round {base.round}"
        raise BaseError(f"{refers}, but the reader holds {holds}; ask for a full message")
    if base.size != header.n or base.buffers.size != header.b:
        raise BaseError(f"{refers}, but the reader's is of another network")
    if header.gain and base.trend is None:
        raise BaseError(f"{refers} and its trend, but the reader holds no trend; ask for a full message")
    if base.reference(header.gain) != header.base_checksum:
        raise BaseError(
            f"{refers} with checksum {header.base_checksum.hex()}, but the reader's has"
            f" {base.reference(header.gain).hex()}; ask for a full message"
        )
    return base


def _held(indices: Indices, base: Base) -> Mask:
    """bool[k]: which positions the base holds."""
    if base.indices.size == 0:
        return np.zeros(indices.shape, np.bool_)
    at = np.minimum(np.searchsorted(base.indices, indices), base.indices.size - 1)
    return np.asarray(base.indices[at] == indices)


def _gain(model: ModelState, base: Base, inside: Mask) -> int:
    """Return how much of the base's trend fits the model best, in 1/128."""
    if base.trend is None:
        return 0
    trend = _only(base.trend, inside).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        moved = _only(model.w[base.indices].astype(np.float64) - base.values, inside)
        share = float(moved @ trend) / max(float(trend @ trend), 1e-300)
    return int(np.clip(round(128 * share), 0, 255)) if math.isfinite(share) else 0


def _at(values: Floats, among: Indices) -> Floats:
    return values if among.size == values.size else values[among]


def _only(values: NDArray[Any], inside: Mask) -> NDArray[Any]:
    """Pick by mask, without a copy where all are picked."""
    return values if inside.all() else values[inside]


# Sections


def _bounds(layout: ParameterLayout, base: Base | None = None) -> list[int]:
    """Return where each tensor begins among all parameters, or among a base's survivors, and the total."""
    offsets = [slot.offset for slot in layout.parameters]
    if base is None:
        return [*offsets, layout.n]
    return [*np.searchsorted(base.indices, offsets).tolist(), base.indices.size]


def _read_mask(
    coding: int, data: bytes, layout: ParameterLayout, base: Base | None, k: int
) -> tuple[Indices, Indices | None]:
    """Return the surviving positions, and their places among the base's survivors if the mask is coded in them."""
    if coding not in MaskCoding.__members__.values():
        raise WireError(f"mask: encoding {coding} is unknown")
    if coding in _IN_BASE and base is None:
        raise WireError(f"mask: encoding {MaskCoding(coding).name.lower()} needs a base, and there is none")
    inner = coding in _IN_BASE
    places = decode_mask(coding, data, _bounds(layout, base if inner else None))
    if places.size != k:
        raise WireError(f"mask: {places.size} positions survive, but the header declares {k}")
    if not inner or base is None:
        return places, None
    return (base.indices if k == base.indices.size else base.indices[places]), places


def _write_metrics(metrics: Mapping[str, float]) -> bytes:
    for name, figure in metrics.items():
        if not math.isfinite(figure):
            raise WireError(f"metrics: {name} is {figure}, which is not a finite number")
    return b"".join(_name(name) + _FLOAT64.pack(figure) for name, figure in metrics.items())


def _write_memory(memory: Mapping[str, Floats], n: int) -> bytes:
    parts = []
    for name, vector in memory.items():
        if vector.shape != (n,):
            raise ArgumentError(f"memory {name} has shape {vector.shape} where ({n},) is needed")
        coding, data = encode_values(np.ascontiguousarray(vector), None, section="memory")
        parts += [_name(name), bytes([coding]), varint(len(data)), data]
    return b"".join(parts)


def _read_memory(coding: int, data: bytes, header: Header) -> dict[str, Floats]:
    reader = Reader(data, "memory")
    if coding or (data and header.kind != Kind.CHECKPOINT):
        raise WireError(f"memory: encoding {coding}, {len(data)} bytes in a {header.kind.name.lower()}")
    vectors: dict[str, Floats] = {}
    while reader.left:
        name = reader.text()
        if name in vectors:
            raise WireError(f"memory: two vectors have the name {name}")
        how = reader.byte()
        if how not in (Coding.PLAIN, Coding.SPLIT):  # the others can say n numbers in a few bytes, any number of times
            raise WireError(f"memory: encoding {how} of {name} is not plain or split")
        vectors[name] = decode_values(how, reader.take(reader.varint("its length")), header.n, None, "memory")
    return vectors


def _name(name: str) -> bytes:
    if not 1 <= len(name) <= 64 or not name.isascii() or not name.isprintable():
        raise ArgumentError(f"the name {name!r} is not 1 to 64 printable ASCII characters")
    return bytes([len(name)]) + name.encode("ascii")


def _check_fit(message: Message, layout: ParameterLayout, base: Base | None) -> None:
    model = message.model
    if model.w.shape != (layout.n,) or model.mask.shape != (layout.n,) or model.buffers.shape != (layout.b,):
        raise ArgumentError(
            f"a model of {model.w.shape} parameters, {model.mask.shape} mask positions and {model.buffers.shape}"
            f" buffers does not fit a network of {layout.n} parameters and {layout.b} buffers"
        )
    if base is not None and (base.size != layout.n or base.buffers.shape != (layout.b,)):
        raise ArgumentError(f"a base of {base.size} parameters does not fit a network of {layout.n}")
