"""Sound messages of a small network, and what it takes to break one rule of the format at a time, checksum and all."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np

from fedsparsify.wire import Kind, Message, Reference, decode, encode, request_full
from tests.wire import spec
from tests.wire.cases import layout_of, model_of, near, random_model, tensors

LAYOUT = layout_of([("fc", (4, 3)), ("bias", (3,))], [("running", (2,))])
N, B = 15, 2
MASK = np.arange(N) % 3 > 0
K = 10
MODEL = model_of(np.arange(1, K + 1, dtype=np.float32), MASK, np.ones(B, np.float32))
REFERENCE = Reference(MODEL, LAYOUT, np.full(K, 2.0**-8, np.float32))
WITHOUT_DRIFT = Reference(MODEL, LAYOUT)
WIDE = layout_of([("fc", (40, 25)), ("bias", (40,))], [("running", (2,))])
WIDE_REFERENCE = Reference(
    random_model(WIDE, 0, 0.4), WIDE, np.full(random_model(WIDE, 0, 0.4).nonzero, 1e-4, np.float32)
)

_METRICS = {"loss": 0.5, "f1": 0.25}
_MEMORY = {"momentum": MODEL.w, "v": np.zeros(N, np.float32)}
SOUND: Mapping[str, tuple[bytes, Reference | None]] = {
    "model": (encode(Message(Kind.MODEL, 9, MODEL), LAYOUT), None),
    "checkpoint": (encode(Message(Kind.CHECKPOINT, 9, MODEL, memory=_MEMORY), LAYOUT), None),
    "first": (encode(Message(Kind.BROADCAST, 1, MODEL), LAYOUT), None),
    "broadcast": (encode(Message(Kind.BROADCAST, 2, MODEL, remember=True), LAYOUT, REFERENCE), REFERENCE),
    "update": (
        encode(Message(Kind.UPDATE, 2, near(REFERENCE, 1, pruned=0.3), 3, 128, _METRICS), LAYOUT, REFERENCE),
        REFERENCE,
    ),
    "bfloat16": (encode(Message(Kind.UPDATE, 2, MODEL, 3, 128), LAYOUT, REFERENCE, "bfloat16"), REFERENCE),
    "int8": (encode(Message(Kind.UPDATE, 2, MODEL, 3, 128), LAYOUT, REFERENCE, "int8"), REFERENCE),
    "request": (request_full(LAYOUT, 2, 3), None),
}
WIDE_SOUND: Mapping[str, tuple[bytes, Reference | None]] = {
    "coded": (
        encode(Message(Kind.UPDATE, 2, near(WIDE_REFERENCE, 1, 1e-5, 0.1), 3, 9), WIDE, WIDE_REFERENCE),
        WIDE_REFERENCE,
    ),
    "coded first": (encode(Message(Kind.BROADCAST, 2, WIDE_REFERENCE.model), WIDE), None),
}


def read(data: bytes, reference: Reference | None = REFERENCE) -> Message:
    return decode(data, LAYOUT, reference)


def broken(name: str, **changed: bytes) -> bytes:
    """A sound message with some of its fields replaced, and a right checksum."""
    return spec.join({**spec.split(SOUND[name][0]), **changed})


def full(**changed: bytes) -> bytes:
    """An update without reference, of a full mask and zeros."""
    return spec.join(spec.parts_of(spec.UPDATE, *tensors(LAYOUT), **changed))


def weights_of(*symbols: int) -> bytes:
    """Statistics that foresee these symbols alike."""
    return bytes(16 if symbol in symbols else 0 for symbol in range(256))


SYMBOLS = [128, 255] * (N // 2) + [128]  # with 23 low bits: 0.0 and 1.0, where 0 is predicted
LOW_BITS = bytes([23, *[0] * 31])


def coded(
    symbols: Sequence[int] = SYMBOLS,
    *,
    weights: bytes = weights_of(128, 255),
    low_bits: bytes = LOW_BITS,
    escapes: int = 0,
    escaped: Sequence[float] = (),
    packed: bytes | None = None,
    size: int | None = None,
    bits: bytes | None = None,
    more_bits: bytes = b"",
    low_bytes: bytes | None = None,
    encoding: int = spec.CODED_FLOATS,
) -> bytes:
    """A vector section of encoding 1: values of one class, the low bits of all of which are 0."""
    low = low_bits[0]
    if bits is None:
        bits = spec.encode_bits([(spec.categorical(weights), symbols)])
    size_of_low = low // 8 * len(symbols) + (low % 8 * len(symbols) + 7) // 8
    zeros = bytes(size_of_low) if low_bytes is None else low_bytes
    packed = spec.deflate(low_bits + weights) if packed is None else packed
    head = struct.pack("<HI", len(packed) if size is None else size, escapes)
    return spec.section(encoding, head + packed + spec.floats(escaped) + zeros + bits + more_bits)


def coded_bytes(weights: bytes, before: bytes = b"", bits: bytes = b"") -> bytes:
    packed = spec.deflate(weights)
    return before + struct.pack("<H", len(packed)) + packed + bits


def coded_mask(mask: Sequence[bool], k: int | None = None, more: bytes = b"", first: int = 12) -> bytes:
    """The content of a mask section of encoding 3 for a first tensor and a last one, which may lie about k."""
    tensors = [[int(bit) for bit in part] for part in (mask[:first], mask[first:])]
    ones = sum(mask) if k is None else k
    declared = [sum(tensors[0]), ones - sum(tensors[0])]
    steps = [
        (spec.bernoulli(k, len(bits)), bits) for k, bits in zip(declared, tensors, strict=True) if 0 < k < len(bits)
    ]
    return spec.varint(ones) + spec.varint(declared[0]) + spec.encode_bits(steps) + more
