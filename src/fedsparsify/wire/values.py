"""Float32 numbers as bytes, with and without numbers that the reader already holds.

Each coding writes a number's unpredictable bits as they are and entropy-codes the rest, one symbol a number:

- *difference*: bits -> ordered integer (monotone in the number); zigzag of its difference to that of the predicted
  number; the symbol is the difference's bit length, the bits below its leading one are written as they are. *Scaled*
  adds the predicted number's exponent to the symbol: then it is the change's magnitude, which is alike for large and
  small parameters. *Fine* adds the two bits below the leading one as well.
- *split*: the symbol is the exponent, sign and mantissa are written as they are.
- bfloat16 has both, on the upper 16 bits; *int8* writes the change in steps of 1/127 of its block's largest.

Every function works on flat arrays; nothing loops over numbers.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, WireError
from ..state import Floats
from .bits import BATCH, Reader, deflate, inflate, pack_fields, unpack_fields, varint

__all__ = [
    "BLOCK",
    "LOSSLESS",
    "Coding",
    "ValueCoding",
    "check_coding",
    "decode_values",
    "encode_values",
    "round_values",
]

ValueCoding = Literal["float32", "bfloat16", "int8"]
"""How surviving values travel; ``float32`` is lossless."""

BLOCK = 256
"""Numbers that share one scale under ``int8``."""

Integers = NDArray[np.uint32]


class Coding(IntEnum):
    """A section's encoding byte."""

    PLAIN = 0
    SPLIT = 1
    DIFFERENCE = 2
    SCALED = 3
    FINE = 4
    BFLOAT16_SPLIT = 5
    BFLOAT16_DIFFERENCE = 6
    BFLOAT16_SCALED = 7
    BFLOAT16_FINE = 8
    INT8 = 9


_FLOAT32_CODINGS = (Coding.SPLIT, Coding.DIFFERENCE, Coding.SCALED, Coding.FINE)
_BFLOAT16_CODINGS = (Coding.BFLOAT16_SPLIT, Coding.BFLOAT16_DIFFERENCE, Coding.BFLOAT16_SCALED, Coding.BFLOAT16_FINE)
_NEED_PREDICTION = {*_FLOAT32_CODINGS[1:], *_BFLOAT16_CODINGS[1:]}
_EQUAL = 255

LOSSLESS = (Coding.PLAIN, *_FLOAT32_CODINGS)
"""The encodings that give every bit back."""
_LARGEST_BFLOAT16 = 0x7F7F


def check_coding(coding: str) -> None:
    """Refuse an unknown value coding.

    Raises:
        ArgumentError: it is none of ``float32``, ``bfloat16``, ``int8``.
    """
    if coding not in get_args(ValueCoding):
        raise ArgumentError(f'value coding "{coding}" is unknown; known are {", ".join(get_args(ValueCoding))}')


def encode_values(
    x: Floats, predicted: Floats | None, coding: ValueCoding = "float32", section: str = "values"
) -> tuple[Coding, bytes]:
    """Encode float32[k] in the smallest of the encodings that ``coding`` allows.

    Args:
        x: the numbers.
        predicted: float32[k] that the reader holds for them, or None.
        coding: lossless, or how to round.
        section: named in errors.

    Raises:
        WireError: a number is not finite.
    """
    _check_finite(x, section)
    if x.size == 0:
        return Coding.PLAIN, b""
    if coding == "int8":
        return Coding.INT8, _encode_int8(x, predicted)
    if coding == "bfloat16":
        words, guess = _to_bfloat16(x), None if predicted is None else _to_bfloat16(predicted)
        names, bits = _BFLOAT16_CODINGS, 16
        tried = []
    else:
        words, guess = x.view(np.uint32), None if predicted is None else predicted.view(np.uint32)
        names, bits = _FLOAT32_CODINGS, 32
        tried = [(Coding.PLAIN, x.astype("<f4", copy=False).tobytes())]
    if guess is not None:
        tried += zip(names[1:], _encode_differences(words, guess, bits), strict=True)
    if guess is None or len(tried[-1][1]) * 8 > 0.75 * bits * x.size:  # else a difference has won already
        tried.append((names[0], _encode_split(words, bits)))
    return min(tried, key=lambda t: len(t[1]))


def decode_values(coding: int, data: bytes, count: int, predicted: Floats | None, section: str) -> Floats:
    """Decode float32[count] as :func:`encode_values` wrote them.

    Args:
        coding: the section's encoding byte.
        data: the section.
        count: how many numbers the message says there are; the caller has checked it against its own network.
        predicted: float32[count] that the writer was to use, or None if there is none.
        section: named in errors.

    Raises:
        WireError: the section is malformed, needs a prediction that is not there, or holds a number not finite.
    """
    if coding not in Coding.__members__.values():
        raise WireError(f"{section}: encoding {coding} is unknown")
    if coding in _NEED_PREDICTION and predicted is None:
        raise WireError(f"{section}: encoding {Coding(coding).name.lower()} needs a base, and there is none")
    if coding == Coding.PLAIN:
        if len(data) != 4 * count:
            raise WireError(f"{section}: {len(data)} bytes where {4 * count} are needed")
        x = np.frombuffer(data, "<f4").astype(np.float32)
    elif count == 0:
        raise WireError(f"{section}: encoding {Coding(coding).name.lower()} where there are no numbers")
    elif coding == Coding.INT8:
        x = _decode_int8(data, count, predicted, section)
    elif coding in _BFLOAT16_CODINGS:
        guess = None if predicted is None else _to_bfloat16(predicted)
        words = _decode_words(_BFLOAT16_CODINGS.index(coding), data, count, guess, 16, section)
        x = (words << np.uint32(16)).view(np.float32)
    else:
        guess = None if predicted is None else predicted.view(np.uint32)
        x = _decode_words(_FLOAT32_CODINGS.index(coding), data, count, guess, 32, section).view(np.float32)
    _check_finite(x, section)
    return x


def round_values(x: Floats, predicted: Floats | None, coding: ValueCoding) -> Floats:
    """Return float32[k]: what the reader gets for ``x``; under ``float32`` that is ``x``."""
    check_coding(coding)
    if coding == "float32" or x.size == 0:
        return x
    if coding == "bfloat16":
        return (_to_bfloat16(x) << np.uint32(16)).view(np.float32)
    scales, steps = _quantise(x, predicted)
    return _dequantise(scales, steps, predicted)


def _check_finite(x: Floats, section: str) -> None:
    finite = np.isfinite(x)
    if not finite.all():
        bad = int(np.argmin(finite))
        raise WireError(f"{section}: element {bad} is {x[bad]}, which is not a finite number")


# Differences


def _ordered(words: Integers, bits: int) -> Integers:
    """Map float bits to integers that are ordered as the floats are; its inverse is :func:`_unordered`."""
    sign, low = np.uint32(1 << (bits - 1)), np.uint32((1 << bits) - 1)
    negative = np.uint32(0) - (words >> np.uint32(bits - 1))  # all bits where the sign is set; np.where is slower
    return (words ^ (negative | sign)) & low


def _unordered(keys: Integers, bits: int) -> Integers:
    sign, low = np.uint32(1 << (bits - 1)), np.uint32((1 << bits) - 1)
    negative = (keys >> np.uint32(bits - 1)) - np.uint32(1)
    return (keys ^ (negative | sign)) & low


def _bit_length(z: Integers) -> NDArray[np.int64]:
    # float64 holds every uint32 exactly, so its exponent is the bit length.
    lengths: NDArray[np.int64] = np.maximum((z.astype(np.float64).view(np.int64) >> 52) - 1022, 0)
    return lengths


def _exponents(words: Integers, bits: int) -> NDArray[np.int64]:
    return (words >> np.uint32(bits - 9) & np.uint32(0xFF)).astype(np.int64)


def _encode_differences(words: Integers, guess: Integers, bits: int) -> list[bytes]:
    """Return the plain difference, the scaled and the fine encoding."""
    difference = (_ordered(words, bits) - _ordered(guess, bits)).view(np.int32)
    zigzag = ((difference << 1) ^ (difference >> 31)).view(np.uint32)
    lengths = _bit_length(zigzag)
    scaled = lengths - 1 + _exponents(guess, bits)
    coarse = _fields(zigzag, np.maximum(lengths - 1, 0))
    finer = np.maximum(lengths - 3, 0)
    top = np.where(lengths >= 3, zigzag >> finer.astype(np.uint32) & np.uint32(3), zigzag & (lengths == 2))
    fine = 4 * (scaled % 63) + top
    return [
        _framed(lengths.astype(np.uint8), coarse),
        _framed(np.where(lengths == 0, _EQUAL, scaled % 255).astype(np.uint8), coarse),
        _framed(np.where(lengths == 0, _EQUAL, fine).astype(np.uint8), _fields(zigzag, finer)),
    ]


def _fields(zigzag: Integers, widths: NDArray[np.int64]) -> bytes:
    low = (np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1)
    return pack_fields(zigzag.astype(np.uint64) & low, widths)


def _framed(symbols: NDArray[np.uint8], fields: bytes) -> bytes:
    coded = deflate(symbols)
    return varint(len(coded)) + coded + fields


def _decode_words(way: int, data: bytes, count: int, guess: Integers | None, bits: int, section: str) -> Integers:
    """``way`` is 0 split, 1 difference, 2 scaled, 3 fine."""
    reader = Reader(data, section)
    symbols = inflate(reader.take(reader.varint("the length of the symbols")), count, section)
    if way == 0 or guess is None:
        return _decode_split(symbols, reader, bits)
    lengths = symbols
    if way > 1:
        exponents = (guess >> np.uint32(bits - 9)).astype(np.uint8)
        exponents &= np.uint8(0xFF)
        lengths = _lengths(symbols, exponents, way)
    if int(lengths.max()) > 32:
        raise WireError(f"{section}: a difference of {int(lengths.max())} bits is longer than any number")
    known = 2 if way == 3 else 0  # bits below the leading one that are part of the symbol
    widths = np.maximum(lengths, 1 + known) - np.uint8(1 + known)
    fields = unpack_fields(reader.rest(), widths, section)
    words = np.empty(count, np.uint32)
    for at in range(0, count, BATCH):
        part = slice(at, at + BATCH)
        length = lengths[part].astype(np.uint32)
        z = fields[part].astype(np.uint32)
        z |= (length > 0).astype(np.uint32) << (np.maximum(length, 1) - np.uint32(1))
        if known:
            top = (symbols[part] & np.uint8(3)).astype(np.uint32)
            top = np.where(length > 2, top, top & (length == 2))
            z |= top << widths[part].astype(np.uint32)
        difference = (z >> np.uint32(1)) ^ (np.uint32(0) - (z & np.uint32(1)))
        keys = _ordered(guess[part], bits) + difference
        if bits < 32 and int(keys.max()) >> bits:
            raise WireError(f"{section}: a difference leads out of the range of numbers")
        words[part] = _unordered(keys, bits)
    return words


def _lengths(symbols: NDArray[np.uint8], exponents: NDArray[np.uint8], way: int) -> NDArray[np.uint8]:
    """Undo the scaling: bit lengths; above 32 where no number is that long."""
    if way == 2:
        lengths = (symbols.astype(np.int16) - exponents) % 255 + 1
    else:
        lengths = ((symbols >> 2).astype(np.int16) - exponents) % 63 + 1
    return np.where(symbols == _EQUAL, 0, lengths).astype(np.uint8)


# Exponents apart from signs and mantissas


def _encode_split(words: Integers, bits: int) -> bytes:
    mantissa = np.uint32((1 << (bits - 9)) - 1)
    rest = (words >> np.uint32(bits - 1)) << np.uint32(bits - 9) | words & mantissa
    planes = rest.astype("<u4").view(np.uint8).reshape(-1, 4)[:, : bits // 8 - 1]
    return _framed(_exponents(words, bits).astype(np.uint8), planes.tobytes())


def _decode_split(symbols: NDArray[np.uint8], reader: Reader, bits: int) -> Integers:
    size = bits // 8 - 1
    raw = reader.take(size * symbols.size)
    reader.end()
    rest = np.zeros((symbols.size, 4), np.uint8)
    rest[:, :size] = np.frombuffer(raw, np.uint8).reshape(-1, size)
    words = rest.view("<u4").astype(np.uint32).reshape(-1)
    sign = words >> np.uint32(bits - 9)
    mantissa = words & np.uint32((1 << (bits - 9)) - 1)
    result: Integers = sign << np.uint32(bits - 1) | symbols.astype(np.uint32) << np.uint32(bits - 9) | mantissa
    return result


# Lossy


def _to_bfloat16(x: Floats) -> Integers:
    """Round to the nearest bfloat16, ties to even; the largest stay finite. Returns the upper 16 bits."""
    words = x.view(np.uint32)
    rounded = (words + np.uint32(0x7FFF) + (words >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    magnitude = np.minimum(rounded & np.uint32(0x7FFF), np.uint32(_LARGEST_BFLOAT16))
    result: Integers = words >> np.uint32(31) << np.uint32(15) | magnitude
    return result


def _blocks(x: NDArray[Any]) -> NDArray[Any]:
    return np.pad(x, (0, -x.size % BLOCK)).reshape(-1, BLOCK)


def _quantise(x: Floats, predicted: Floats | None) -> tuple[Floats, NDArray[np.int8]]:
    with np.errstate(over="ignore"):
        change = x if predicted is None else x - predicted
    # Halved, so that the difference of two finite numbers has a finite scale.
    change = np.clip(change, -np.finfo(np.float32).max / 2, np.finfo(np.float32).max / 2)
    blocks = _blocks(change)
    scales = (np.abs(blocks).max(axis=1) / np.float32(127)).astype(np.float32)
    divisors = np.where(scales > 0, scales, np.float32(1))[:, None]
    steps = np.clip(np.rint(blocks / divisors), -127, 127).astype(np.int8)
    return scales, steps.reshape(-1)[: x.size]


def _dequantise(scales: Floats, steps: NDArray[np.int8], predicted: Floats | None) -> Floats:
    with np.errstate(over="ignore"):
        moved = (_blocks(steps).astype(np.float32) * scales[:, None]).reshape(-1)[: steps.size]
        if predicted is not None:
            moved = predicted + moved
    limit = np.finfo(np.float32).max
    result: Floats = np.clip(moved, -limit, limit)
    return result


def _encode_int8(x: Floats, predicted: Floats | None) -> bytes:
    scales, steps = _quantise(x, predicted)
    return scales.astype("<f4", copy=False).tobytes() + deflate(steps.view(np.uint8) ^ np.uint8(0x80))


def _decode_int8(data: bytes, count: int, predicted: Floats | None, section: str) -> Floats:
    reader = Reader(data, section)
    scales = np.frombuffer(reader.take(4 * -(-count // BLOCK)), "<f4").astype(np.float32)
    _check_finite(scales, f"{section} (scales)")
    if (scales < 0).any() or (scales > np.finfo(np.float32).max / 127).any():
        raise WireError(f"{section}: a scale is negative or too large")
    steps = (inflate(reader.rest(), count, section) ^ np.uint8(0x80)).view(np.int8)
    if (steps == -128).any():
        raise WireError(f"{section}: a step of -128 is outside -127 to 127")
    return _dequantise(scales, steps, predicted)
