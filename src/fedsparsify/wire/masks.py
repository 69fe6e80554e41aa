"""Masks as bytes: which positions of a domain survive, tensor by tensor, close to the entropy.

The domain is all n parameters, or the survivors of a mask that the reader holds. Each tensor's share of it is coded by
its own density. Where one kind of position (kept or pruned) is rare: the gaps between the rare ones, their low bits as
they are, the rest entropy-coded (a Rice code whose unary part is Huffman's). Else groups of four bits, entropy-coded,
or plain bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import WireError
from ..state import Mask
from .bits import Reader, deflate, inflate, pack_fields, unpack_fields, varint

__all__ = ["MaskCoding", "decode_mask", "encode_mask", "mask_entropy"]

Bounds = Sequence[int]
"""Where each tensor's share of the domain begins, then the domain's size: ascending, from 0."""


class MaskCoding(IntEnum):
    """The mask section's encoding byte."""

    FULL = 0
    NONE = 1
    SAME = 2
    BITMAP = 3
    TENSORS = 4
    BITMAP_IN_BASE = 5
    TENSORS_IN_BASE = 6


# How one tensor is coded; gap codings are _GAPS + number of low bits, plus _KEPT_IS_RARE.
_GAPS, _KEPT_IS_RARE, _MOST_LOW_BITS = 0, 32, 31
_ALL_KEPT, _NONE_KEPT, _NIBBLES, _BITS = 64, 65, 66, 67

_ESCAPE = 255


def encode_mask(domain: Mask, bounds: Bounds, in_base: bool) -> tuple[MaskCoding, bytes]:
    """Encode which positions of a domain survive, in the smaller of tensors and bitmap.

    Args:
        domain: bool[d].
        bounds: the tensors' shares of the domain.
        in_base: whether the domain is a base's survivors; else it is all parameters.
    """
    kept = int(np.count_nonzero(domain))
    if kept == domain.size and (in_base or kept):
        return (MaskCoding.SAME if in_base else MaskCoding.FULL), b""
    if kept == 0:
        return MaskCoding.NONE, b""
    bitmap = np.packbits(domain, bitorder="little").tobytes()
    tensors = _encode_tensors(domain, bounds)
    if len(tensors) < len(bitmap):
        return (MaskCoding.TENSORS_IN_BASE if in_base else MaskCoding.TENSORS), tensors
    return (MaskCoding.BITMAP_IN_BASE if in_base else MaskCoding.BITMAP), bitmap


def decode_mask(coding: int, data: bytes, bounds: Bounds) -> NDArray[np.int64]:
    """Decode the positions in the domain that survive: int64[k], ascending.

    Args:
        coding: the section's encoding byte; the caller has made the domain that it needs.
        data: the section.
        bounds: the tensors' shares of the domain, from the reader's own network.

    Raises:
        WireError: the section is malformed.
    """
    size = bounds[-1]
    if coding in (MaskCoding.FULL, MaskCoding.NONE, MaskCoding.SAME):
        if data:
            raise WireError(f"mask: {len(data)} bytes where there should be none")
        return np.arange(0 if coding == MaskCoding.NONE else size)
    if coding in (MaskCoding.BITMAP, MaskCoding.BITMAP_IN_BASE):
        return np.flatnonzero(_from_bits(data, size))
    return _decode_tensors(Reader(data, "mask"), bounds)


def mask_entropy(domain: Mask, bounds: Bounds) -> float:
    """Return the bits that an ideal coder needs which knows each tensor's density.

    >>> mask_entropy(np.array([True, False, True, True]), [0, 2, 4])
    2.0
    """
    total = 0.0
    for start, end in pairwise(bounds):
        kept = int(np.count_nonzero(domain[start:end]))
        if 0 < kept < end - start:
            p = kept / (end - start)
            total -= (end - start) * (p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return float(total)


def _from_bits(data: bytes, size: int) -> Mask:
    if len(data) != (size + 7) // 8:
        raise WireError(f"mask: {len(data)} bytes where {(size + 7) // 8} are needed")
    if size % 8 and data[-1] >> (size % 8):
        raise WireError("mask: bits beyond the last position are set")
    return np.unpackbits(np.frombuffer(data, np.uint8), count=size, bitorder="little").view(np.bool_)


def _mode(kept: int, size: int) -> int:
    """Choose how to code a tensor of which ``kept`` of ``size`` positions survive."""
    if kept in (0, size):
        return _ALL_KEPT if kept else _NONE_KEPT
    rare = min(kept, size - kept)
    p = rare / size
    if p > 0.44:
        return _BITS  # within 1.1% of the entropy
    if p > 0.2:
        return _NIBBLES
    # As many low bits as leave a quarter to a half of the gaps with nothing above them.
    low = max(0, int(np.floor(np.log2(0.4 / p))))
    return _GAPS + min(low, _MOST_LOW_BITS) + (_KEPT_IS_RARE if kept == rare else 0)


def _encode_tensors(domain: Mask, bounds: Bounds) -> bytes:
    heads, symbols, fields, widths, nibbles, bits = [], [], [], [], [], []
    for start, end in pairwise(bounds):
        if start == end:
            continue
        part = domain[start:end]
        kept = int(np.count_nonzero(part))
        mode = _mode(kept, part.size)
        heads.append(bytes([mode]))
        if mode == _NIBBLES:
            nibbles.append(_to_nibbles(part))
        elif mode == _BITS:
            bits.append(np.packbits(part, bitorder="little").tobytes())
        elif mode < _ALL_KEPT:
            low = mode % 32
            rare = np.flatnonzero(part if mode >= _KEPT_IS_RARE else ~part)
            heads.append(varint(rare.size))
            gaps = np.diff(rare, prepend=-1) - 1
            symbols.append(_escaped(gaps >> low))
            fields.append((gaps & ((1 << low) - 1)).astype(np.uint64))
            widths.append(np.full(rare.size, low, np.int64))
    coded_symbols = deflate(_joined(symbols, np.uint8))
    coded_nibbles = deflate(_joined(nibbles, np.uint8))
    return b"".join(
        [
            *heads,
            *(varint(sum(s.size for s in symbols)), varint(len(coded_symbols)), coded_symbols),
            *(varint(len(coded_nibbles)), coded_nibbles),
            *bits,
            pack_fields(_joined(fields, np.uint64), _joined(widths, np.int64)),
        ]
    )


def _decode_tensors(reader: Reader, bounds: Bounds) -> NDArray[np.int64]:
    shares = [(start, end - start) for start, end in pairwise(bounds) if end > start]
    modes, rares = [], []
    for _, size in shares:
        mode = reader.byte()
        if mode > _BITS:
            raise WireError(f"mask: a tensor's coding {mode} is unknown")
        modes.append(mode)
        rares.append(reader.varint("a tensor's number of gaps", size) if mode < _ALL_KEPT else 0)
    count = reader.varint("the number of symbols", bounds[-1])
    symbols = inflate(reader.take(reader.varint("the length of the symbols")), count, "mask")
    lengths = [-(-size // 4) for (_, size), mode in zip(shares, modes, strict=True) if mode == _NIBBLES]
    nibbles = inflate(reader.take(reader.varint("the length of the groups")), sum(lengths), "mask")
    if nibbles.size and int(nibbles.max()) > 15:
        raise WireError("mask: a group has more than four bits")
    bits = [reader.take((size + 7) // 8) for (_, size), mode in zip(shares, modes, strict=True) if mode == _BITS]
    highs = _unescaped(symbols, sum(rares))
    lows = np.repeat(np.array([mode % 32 for mode in modes], np.int64), rares)
    fields = unpack_fields(reader.rest(), lows, "mask")

    parts = []
    at_gap = at_nibble = at_bits = 0
    for (start, size), mode, rare in zip(shares, modes, rares, strict=True):
        if mode == _NONE_KEPT:
            continue
        if mode == _ALL_KEPT:
            inside = np.arange(size)
        elif mode == _NIBBLES:
            inside = np.flatnonzero(_from_nibbles(nibbles[at_nibble : at_nibble + -(-size // 4)], size))
            at_nibble += -(-size // 4)
        elif mode == _BITS:
            inside = np.flatnonzero(_from_bits(bits[at_bits], size))
            at_bits += 1
        else:
            span = slice(at_gap, at_gap + rare)
            inside = _positions(highs[span], fields[span].astype(np.int64), mode % 32, size)
            if mode < _KEPT_IS_RARE:
                others = np.ones(size, np.bool_)
                others[inside] = False
                inside = np.flatnonzero(others)
            at_gap += rare
        parts.append(inside + start)
    return _joined(parts, np.int64)


def _positions(highs: NDArray[np.int64], fields: NDArray[np.int64], low: int, size: int) -> NDArray[np.int64]:
    if highs.size and int(highs.max()) > size >> low:
        raise WireError(f"mask: a gap is longer than its tensor's {size} positions")
    inside: NDArray[np.int64] = np.cumsum((highs << low | fields) + 1) - 1
    # Gaps are at most `size` and there are at most `size` of them, so the sum cannot overflow.
    if inside.size and int(inside[-1]) >= size:
        raise WireError(f"mask: gaps lead to position {int(inside[-1])} of a tensor with {size}")
    return inside


def _escaped(highs: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Write each number as 255s and a last symbol below 255 that add up to it."""
    escapes = highs // _ESCAPE
    symbols = np.full(int(escapes.sum()) + highs.size, _ESCAPE, np.uint8)
    symbols[np.cumsum(escapes + 1) - 1] = highs % _ESCAPE
    return symbols


def _unescaped(symbols: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    last = np.flatnonzero(symbols != _ESCAPE)
    if last.size != count or (symbols.size and symbols[-1] == _ESCAPE):
        raise WireError(f"mask: {last.size} gaps where {count} are declared")
    return np.diff(np.cumsum(symbols, dtype=np.int64)[last], prepend=0)


def _to_nibbles(part: Mask) -> NDArray[np.uint8]:
    packed = np.packbits(part, bitorder="little")
    both = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)
    return both[: -(-part.size // 4)]


def _from_nibbles(nibbles: NDArray[np.uint8], size: int) -> Mask:
    padded = np.pad(nibbles, (0, nibbles.size % 2)).reshape(-1, 2)
    return _from_bits((padded[:, 0] | padded[:, 1] << 4).tobytes()[: (size + 7) // 8], size)


def _joined(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
