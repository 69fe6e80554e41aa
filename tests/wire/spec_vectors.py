"""FORMAT.md written down a second time: references, masks and vectors."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tests.wire.spec_bytes import (
    Array,
    Bytes,
    Coded,
    Section,
    bernoulli,
    bitmap,
    categorical,
    floats,
    inflate,
    need,
    varint,
)

Tensors = Sequence[tuple[str, Sequence[int]]]

FULL, AS_REFERENCE, BITMAP, CODED, WITHIN = 0, 1, 2, 3, 4
FLOAT32, CODED_FLOATS, BY_CLASS, BFLOAT16, INT8 = 0, 1, 2, 3, 4


@dataclass
class Held:
    """A reference: what both ends of a link hold."""

    mask: Array
    values: Array
    buffers: Array
    step: Array | None = None
    mean_step: Array | None = None

    @property
    def drift(self) -> Array | None:
        return self.step if self.mean_step is None else self.mean_step

    @property
    def checksum(self) -> int:
        step = b"" if self.step is None else floats(self.step)
        crc = zlib.crc32(bitmap(self.mask) + floats(self.values) + floats(self.buffers) + step) or 1
        return crc if self.mean_step is None else zlib.crc32(floats(self.mean_step), crc) or 1


def size_of(tensors: Tensors) -> int:
    return sum(math.prod(shape) for _, shape in tensors)


def scale_of(held: Held, parameters: Tensors) -> Array:
    """The scale at each position; only the reference's survivors count."""
    n = size_of(parameters)
    scale = np.ones(n, np.float32)
    if held.step is None:
        return scale
    drift = np.zeros(n, np.float64)
    drift[held.mask] = np.abs(held.step.astype(np.float64))
    start = 0
    for _, shape in parameters:
        here = [i for i in range(start, start + math.prod(shape)) if held.mask[i]]
        columns = math.prod(shape[1:])
        if here:
            mean = _mean([drift[i] for i in here])
            scale[here] = mean
            if len(shape) > 1 and mean != 0:
                rows: dict[int, list[float]] = {}
                cols: dict[int, list[float]] = {}
                for i in here:
                    rows.setdefault((i - start) // columns, []).append(drift[i])
                    cols.setdefault((i - start) % columns, []).append(drift[i])
                for i in here:
                    row, column = rows[(i - start) // columns], cols[(i - start) % columns]
                    with np.errstate(over="ignore", invalid="ignore"):
                        scale[i] = np.float32(np.float64(_mean(row)) * np.float64(_mean(column)) / np.float64(mean))
        start += math.prod(shape)
    return scale


def _mean(numbers: Sequence[float]) -> float:
    total = 0.0
    for number in numbers:
        total += number
    return total / len(numbers)


def exponent(values: Array) -> Array:
    return (values.astype("<f4").view("<u4").astype(np.int64) >> 23) & 255


def predict(held: Held | None, lean: int, mask: Array, parameters: Tensors) -> tuple[Array, Array]:
    """Prediction and class of each survivor of ``mask``."""
    prediction, classes = np.zeros(len(mask), np.float32), np.zeros(len(mask), np.int64)
    if held is not None:
        values = held.values.astype(np.float32)
        if lean:
            assert held.drift is not None
            with np.errstate(over="ignore"):
                values = (values + np.float32(lean / 8) * held.drift).astype(np.float32)
        prediction[held.mask] = held.values.astype(np.float32)
        difference = exponent(scale_of(held, parameters)) - exponent(prediction) + 16
        classes[held.mask] = np.clip(difference, 0, 31)[held.mask]
        prediction[held.mask] = values
    return prediction[mask], classes[mask]


def read_mask(found: Section, parameters: Tensors, held: Array | None) -> Array:
    encoding, data = found
    n = size_of(parameters)
    if encoding == FULL:
        need(data == b"", "a full mask has no bytes")
        return np.ones(n, np.bool_)
    if encoding == AS_REFERENCE:
        need(held is not None and data == b"", "a mask as the reference has no bytes, and needs one")
        assert held is not None
        return held
    if encoding == BITMAP:
        need(len(data) == math.ceil(n / 8), "a bitmap has ceil(n / 8) bytes")
        bits = [data[i // 8] >> (i % 8) & 1 for i in range(8 * len(data))]
        need(not any(bits[n:]), "unused bits are 0")
        return np.array(bits[:n], np.bool_)
    need(encoding == CODED or (encoding == WITHIN and held is not None), "no such encoding of a mask")
    allowed = np.ones(n, np.bool_) if held is None or encoding == CODED else held
    mask, left, begin = np.zeros(n, np.bool_), Bytes(data), 0
    k = left.varint()
    need(k <= int(allowed.sum()), "more survivors than positions")
    if k in (0, int(allowed.sum())):
        need(left.data == varint(k), "bits of a mask that needs none")
        return allowed & (k > 0)
    survivors = [left.varint() for _ in parameters[1:]]
    survivors.append(k - sum(survivors))
    coded = Coded(left.rest())
    for tensor, ones in zip(parameters, survivors, strict=True):
        positions = begin + np.flatnonzero(allowed[begin : begin + size_of([tensor])])
        begin += size_of([tensor])
        need(0 <= ones <= len(positions), "more survivors than positions")
        if 0 < ones < len(positions):
            mask[positions] = coded.symbols(bernoulli(ones, len(positions)), len(positions)) == 1
        else:
            mask[positions] = ones > 0
        need(int(mask[positions].sum()) == ones, "not so many bits are 1")
    coded.end()
    return mask


def order(values: Array) -> Array:
    """Bits as a signed integer, bits 0 to 30 inverted where it is negative."""
    bits = values.astype("<f4").view("<i4").astype(np.int64)
    return np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def from_order(numbers: Array) -> Array:
    return np.where(numbers < 0, numbers ^ 0x7FFFFFFF, numbers).astype("<i4").view("<f4").astype(np.float32)


def signed(numbers: Array) -> Array:
    return (numbers + 2**31) % 2**32 - 2**31


def read_vector(found: Section, prediction: Array, classes: Array) -> Array:
    encoding, data = found
    count = len(prediction)
    if encoding == FLOAT32:
        need(len(data) == 4 * count, "not 4 bytes a value")
        values = np.frombuffer(data, "<f4").astype(np.float32)
    elif encoding in (CODED_FLOATS, BY_CLASS):
        values = _read_coded(Bytes(data), prediction, classes, encoding == BY_CLASS)
    elif encoding == BFLOAT16:
        upper, lower = _read_bytes(Bytes(data), 2, count)
        difference = ((upper << 24) | (lower << 16)).astype("<u4").view("<f4")
        values = _add(prediction, difference)
    else:
        need(encoding == INT8, "no such encoding of a vector")
        left = Bytes(data)
        scale = np.repeat(np.frombuffer(left.take(4 * math.ceil(count / 256)), "<f4"), 256)[:count]
        (steps,) = _read_bytes(left, 1, count)
        with np.errstate(over="ignore", invalid="ignore"):
            values = _add(prediction, steps.astype(np.uint8).view(np.int8).astype(np.float32) * scale)
    need(bool(np.isfinite(values).all()), "a value is not finite")
    return values


def _add(a: Array, b: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return (a + b).astype(np.float32)


def _read_bytes(left: Bytes, sequences: int, count: int) -> list[Array]:
    weights = inflate(left.take(left.unpack("H")), 256 * sequences)
    coded = Coded(left.rest())
    out = [coded.symbols(categorical(weights[256 * i : 256 * i + 256]), count) for i in range(sequences)]
    coded.end()
    return out


def _read_coded(left: Bytes, prediction: Array, classes: Array, by_class: bool) -> Array:
    size, escapes = left.unpack("H"), left.unpack("I")
    occurring = sorted(set(classes.tolist()))
    statistics = inflate(left.take(size), 32 + 256 * (len(occurring) if by_class else 1))
    need(max(statistics[:32]) <= 23, "more than 23 low bits")
    escaped = np.frombuffer(left.take(4 * escapes), "<f4")
    low_of = _read_low(left, {number: statistics[number] for number in occurring}, classes)
    coded, values, used = Coded(left.rest()), np.zeros(len(classes), np.float32), 0
    for i, number in enumerate(occurring):
        start, low_bits = 32 + 256 * i * by_class, statistics[number]
        here = np.flatnonzero(classes == number)
        symbols = coded.symbols(categorical(statistics[start : start + 256]), len(here))
        distance = ((symbols - 128) << low_bits) + low_of[here]
        values[here] = from_order(signed(order(prediction[here]) + distance))
        escape = here[symbols == 0]
        need(used + len(escape) <= escapes, "more escapes than announced")
        values[escape] = escaped[used : used + len(escape)]
        used += len(escape)
    need(used == escapes, "fewer escapes than announced")
    coded.end()
    return values


def _read_low(left: Bytes, low_bits: dict[int, int], classes: Array) -> Array:
    """d mod 2^l of every value, in order of position."""
    low = np.zeros(len(classes), np.int64)
    for number, width in low_bits.items():
        for i in range(width // 8):
            low[classes == number] += np.frombuffer(left.take(int((classes == number).sum())), np.uint8).astype(
                np.int64
            ) << (8 * i)
    total = sum(int((classes == number).sum()) * (width % 8) for number, width in low_bits.items())
    packed = left.take(math.ceil(total / 8))
    bits = [packed[i // 8] >> (i % 8) & 1 for i in range(8 * len(packed))]
    need(not any(bits[total:]), "unused bits are 0")
    used = 0
    for number, width in low_bits.items():
        for i in range(width // 8 * 8, width):
            here = np.flatnonzero(classes == number)
            low[here] += np.array(bits[used : used + len(here)], np.int64) << i
            used += len(here)
    return low
