"""Float32 vectors in as few bytes as the receiver's knowledge allows (``FORMAT.md``, section "Vectors").

A value is coded by its distance from a prediction that both ends can make: the difference of the two floats' bits,
read as integers that are ordered like the numbers. Its upper part is entropy-coded, its lower bits, which no model can
foresee, are written as they are. How many those are depends on the value's class: values of one class are expected to
be equally far from their predictions.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import WireError
from ..state import Floats
from .coder import (
    SYMBOLS,
    Encoder,
    check_exhausted,
    decode_bytes,
    deflate,
    encode_bytes,
    expected_bytes,
    inflate,
    new_decoder,
    symbol_model,
    take,
    weights_of,
    words_of,
)

__all__ = ["CLASSES", "Classes", "Coding", "decode_floats", "encode_floats", "encoding_names", "rank_classes"]

Coding = Literal["float32", "bfloat16", "int8"]
"""How values travel: without loss, or their differences from the prediction rounded."""

CLASSES = 32
"""Most classes that values can be sorted into."""

_RAW, _SHARED, _BY_CLASS, _BFLOAT16, _INT8 = range(5)
_ESCAPE, _ZERO = 0, 128  # symbols: a value that is written in full, and a distance around 0
_LOSSY_BLOCK = 256
_MOST_LOW_BITS = 23
_LEVELS = struct.Struct("<HI")  # bytes of the deflated statistics, number of escapes


def encoding_names() -> tuple[str, ...]:
    """Name the encodings by their numbers."""
    return ("float32", "coded", "coded by class", "bfloat16 differences", "int8 differences")


class Classes:
    """A class for each value, and the order that sorts by class; computed once, used by many vectors.

    Args:
        of: uint8[k], the class of each value, below :data:`CLASSES`.
    """

    def __init__(self, of: NDArray[np.uint8]) -> None:
        self.of = of
        self.order = np.argsort(of, kind="stable")
        self.counts = np.bincount(of, minlength=CLASSES)

    def slices(self) -> Iterator[tuple[int, slice]]:
        """Yield each class that occurs, and where its values lie when sorted."""
        ends = np.cumsum(self.counts)
        for c in np.flatnonzero(self.counts):
            yield int(c), slice(int(ends[c] - self.counts[c]), int(ends[c]))


def rank_classes(scale: Floats, prediction: Floats) -> NDArray[np.uint8]:
    """Sort values by how far from their predictions they are expected to be, in units of the float's last bit.

    Args:
        scale: float32[k] >= 0, the change expected of each value.
        prediction: float32[k].

    Returns:
        uint8[k]: the exponent of ``scale`` less that of ``prediction``, plus 16, within 0 and 31.
    """
    exponents = [(np.ascontiguousarray(x).view(np.int32) >> 23) & 255 for x in (scale, prediction)]
    ranks: NDArray[np.uint8] = np.clip(exponents[0] - exponents[1] + 16, 0, CLASSES - 1).astype(np.uint8)
    return ranks


def encode_floats(
    values: Floats, prediction: Floats | None = None, classes: Classes | None = None, coding: Coding = "float32"
) -> tuple[int, bytes]:
    """Encode float32[k] in the smallest way.

    Args:
        values: what to send.
        prediction: float32[k] that the receiver can compute; zeros if None.
        classes: of the values; one for all if None.
        coding: ``float32`` loses nothing, nor do the others where they would save nothing or lead beyond float32.

    Returns:
        The number of the encoding, and the bytes.
    """
    values = np.ascontiguousarray(values, "<f4")
    if prediction is None:
        prediction = np.zeros_like(values)
    if coding != "float32":
        with np.errstate(over="ignore", invalid="ignore"):
            encoding, data, rounded = (_encode_bfloat16 if coding == "bfloat16" else _encode_int8)(values - prediction)
            if np.isfinite(prediction + rounded).all() and len(data) < values.nbytes:
                return encoding, data
        # Where rounding leads beyond float32, or makes nothing smaller, nothing is rounded.
    raw = values.tobytes()
    if len(values) == 0:
        return _RAW, raw
    encoding, coded = _encode_distances(values, prediction, classes or _one_class(len(values)))
    return (encoding, coded) if len(coded) < len(raw) else (_RAW, raw)


def decode_floats(
    encoding: int, data: bytes, count: int, prediction: Floats | None, classes: Classes | None, section: str
) -> Floats:
    """Decode float32[count]; the inverse of :func:`encode_floats`.

    Raises:
        WireError: the bytes are not ``count`` values in that encoding, or one of them is not finite.
    """
    if encoding == _RAW:
        if len(data) != 4 * count:
            raise WireError(f"{section}: {len(data)} bytes are there where {4 * count} hold {count} values")
        values = np.frombuffer(data, "<f4").astype(np.float32)
    else:
        if prediction is None:
            prediction = np.zeros(count, np.float32)
        try:
            if encoding in (_SHARED, _BY_CLASS):
                values = _decode_distances(encoding, data, prediction, classes or _one_class(count))
            elif encoding in (_BFLOAT16, _INT8):
                with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is refused below
                    values = prediction + (_decode_bfloat16 if encoding == _BFLOAT16 else _decode_int8)(data, count)
            else:
                raise WireError(f"encoding {encoding} is unknown")
        except WireError as error:
            raise WireError(f"{section}: {error}") from None
    finite = np.isfinite(values)
    if not finite.all():
        bad = int(np.argmin(finite))
        raise WireError(f"{section}: element {bad} is {values[bad]}, which is not a finite number")
    return values


# Without loss ---------------------------------------------------------------------------------------------------------


def _encode_distances(values: Floats, prediction: Floats, classes: Classes) -> tuple[int, bytes]:
    distance = (_ordered(values) - _ordered(prediction))[classes.order]
    low_bits = np.zeros(CLASSES, np.uint8)
    for c, at in classes.slices():
        mean = float(np.abs(distance[at].astype(np.float64)).mean())
        low_bits[c] = min(max(int(mean).bit_length() - 3, 0), _MOST_LOW_BITS)
    width = np.repeat(low_bits, classes.counts).astype(np.int32)
    upper = distance >> width
    symbols = np.where((upper > -_ZERO) & (upper < _ZERO), upper + _ZERO, _ESCAPE)
    lower = distance & ((1 << width) - 1)
    counts = np.stack([np.bincount(symbols[at], minlength=SYMBOLS) for _, at in classes.slices()])
    encoding, weights = min(
        ((_SHARED, weights_of(counts.sum(0, keepdims=True))), (_BY_CLASS, weights_of(counts))),
        key=lambda choice: expected_bytes(counts, choice[1]),
    )

    coder = Encoder()
    for row, (_, at) in enumerate(classes.slices()):
        model = symbol_model(weights[row if encoding == _BY_CLASS else 0])
        if not isinstance(model, int):
            coder.encode(symbols[at], model)
    escaped = values[classes.order[symbols == _ESCAPE]]
    statistics = deflate(low_bits.tobytes() + weights.tobytes())
    head = _LEVELS.pack(len(statistics), len(escaped)) + statistics
    return encoding, head + escaped.tobytes() + _pack_low(lower, low_bits, classes) + words_of(coder)


def _decode_distances(encoding: int, data: bytes, prediction: Floats, classes: Classes) -> Floats:
    if len(data) < _LEVELS.size:
        raise WireError(f"{len(data)} bytes are too few")
    size, escapes = _LEVELS.unpack_from(data)
    tables = 1 if encoding == _SHARED else int(np.count_nonzero(classes.counts))
    at_low = _LEVELS.size + size + 4 * escapes
    if escapes > len(prediction) or at_low > len(data):
        raise WireError(f"statistics of {size} bytes and {escapes} escapes do not fit {len(data)} bytes")
    statistics = inflate(data[_LEVELS.size : _LEVELS.size + size], CLASSES + tables * SYMBOLS)
    low_bits = np.frombuffer(statistics, np.uint8, CLASSES)
    weights = np.frombuffer(statistics, np.uint8, offset=CLASSES).reshape(tables, SYMBOLS)
    if low_bits.max() > _MOST_LOW_BITS:
        raise WireError(f"{low_bits.max()} low bits are more than {_MOST_LOW_BITS}")

    distance, used = _unpack_low(data[at_low:], low_bits, classes)
    coder = new_decoder(data[at_low + used :])
    is_escape = np.zeros(len(prediction), np.bool_)
    for row, (c, at) in enumerate(classes.slices()):
        symbols = take(coder, symbol_model(weights[row if encoding == _BY_CLASS else 0]), at.stop - at.start)
        np.equal(symbols, _ESCAPE, out=is_escape[at])
        distance[at] |= (symbols - _ZERO) << int(low_bits[c])
    check_exhausted(coder)
    if np.count_nonzero(is_escape) != escapes:
        raise WireError(f"{np.count_nonzero(is_escape)} values escape, but {escapes} are declared")
    ordered = np.empty(len(prediction), np.int32)
    ordered[classes.order] = distance
    ordered += _ordered(prediction)
    values = _ordered(ordered.view(np.float32)).view(np.float32)
    values[classes.order[is_escape]] = np.frombuffer(data, "<f4", escapes, _LEVELS.size + size)
    return values


def _pack_low(lower: NDArray[np.int32], low_bits: NDArray[np.uint8], classes: Classes) -> bytes:
    """Write the low bits as they are: class by class whole bytes of all values, then the bits above them."""
    whole, bits = [], []
    for c, at in classes.slices():
        low, width = lower[at], int(low_bits[c])
        whole += [(low >> shift).astype(np.uint8) for shift in range(0, width - 7, 8)]
        bits += [(low >> shift) & 1 for shift in range(width // 8 * 8, width)]
    rest = np.packbits(np.concatenate(bits).astype(np.bool_), bitorder="little") if bits else np.zeros(0, np.uint8)
    return b"".join(plane.tobytes() for plane in (*whole, rest))


def _unpack_low(data: bytes, low_bits: NDArray[np.uint8], classes: Classes) -> tuple[NDArray[np.int32], int]:
    """Return the low bits of all values in coding order, and how many bytes they took."""
    wide, narrow = classes.counts * (low_bits // 8), classes.counts * (low_bits % 8)
    begin, count = int(wide.sum()), int(narrow.sum())
    size = begin + (count + 7) // 8
    if len(data) < size:
        raise WireError(f"{len(data)} bytes are too few for low bits of {size}")
    whole = np.frombuffer(data, np.uint8, begin)
    bits = np.unpackbits(np.frombuffer(data, np.uint8, size - begin, begin), bitorder="little")
    if bits[count:].any():
        raise WireError("bits beyond the last value are set")
    low = np.zeros(len(classes.of), np.int32)
    at_whole = at_bits = 0
    for c, at in classes.slices():
        n, width, part = at.stop - at.start, int(low_bits[c]), low[at]
        for shift in range(0, width - 7, 8):
            part |= whole[at_whole : at_whole + n].astype(np.int32) << shift
            at_whole += n
        upper = np.zeros(n, np.uint8)
        for shift in range(width % 8):
            upper |= bits[at_bits : at_bits + n] << shift
            at_bits += n
        part |= upper.astype(np.int32) << (width // 8 * 8)
    return low, size


def _ordered(values: Floats) -> NDArray[np.int32]:
    """Read floats as integers in the same order; its own inverse on bits."""
    bits = values.view(np.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _one_class(count: int) -> Classes:
    return Classes(np.zeros(count, np.uint8))


# With loss ------------------------------------------------------------------------------------------------------------


def _encode_bfloat16(difference: Floats) -> tuple[int, bytes, Floats]:
    bits = difference.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even
    data = encode_bytes([(rounded >> 8).astype(np.uint8), rounded.astype(np.uint8)])
    return _BFLOAT16, data, (rounded << 16).view(np.float32)


def _decode_bfloat16(data: bytes, count: int) -> Floats:
    high, low = decode_bytes(data, [count, count])
    return (((high.astype(np.uint32) << 8) | low) << 16).view(np.float32)


def _encode_int8(difference: Floats) -> tuple[int, bytes, Floats]:
    scale = _block_scales(difference)
    spread = np.repeat(np.where(scale > 0, scale, 1), _LOSSY_BLOCK)[: len(difference)]
    steps = np.clip(np.rint(difference / spread), -127, 127).astype(np.int8)
    return _INT8, scale.tobytes() + encode_bytes([steps.view(np.uint8)]), steps * spread


def _decode_int8(data: bytes, count: int) -> Floats:
    blocks = -(-count // _LOSSY_BLOCK)
    if len(data) < 4 * blocks:
        raise WireError(f"{len(data)} bytes are too few for the scales of {blocks} blocks")
    scale = np.frombuffer(data, "<f4", blocks)
    (steps,) = decode_bytes(data[4 * blocks :], [count])
    values: Floats = steps.view(np.int8) * np.repeat(scale, _LOSSY_BLOCK)[:count]
    return values


def _block_scales(difference: Floats) -> Floats:
    padded = np.zeros(-(-len(difference) // _LOSSY_BLOCK) * _LOSSY_BLOCK, np.float32)
    padded[: len(difference)] = np.abs(difference)
    scale: Floats = padded.reshape(-1, _LOSSY_BLOCK).max(1) / np.float32(127)
    return scale
