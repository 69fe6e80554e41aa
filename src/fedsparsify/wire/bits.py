"""Symbols, bit fields and integers as bytes: the three ways in which a section writes what it has to say.

Symbols are entropy-coded by DEFLATE's Huffman stage (RFC 1951, :mod:`zlib`): measured within 3% of their entropy at
some 10 ns a symbol to write and 5 to read, it adapts every 32,768 symbols, and its decoder has been attacked for
decades. A range coder was 2% smaller on symbols (0.3% on messages) and twenty times slower (``docs/wire.md``).
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import WireError

__all__ = ["BATCH", "Reader", "deflate", "inflate", "pack_fields", "unpack_fields", "varint"]

BATCH = 1 << 14
"""Numbers worked on at a time where many steps follow each other: their intermediate results stay in the cache."""

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]
Widths = NDArray[np.integer[Any]]


def deflate(symbols: Bytes) -> bytes:
    """Entropy-code uint8[m] as a raw DEFLATE stream, the smallest of those tried."""
    if symbols.size == 0:
        return b""
    raw = np.ascontiguousarray(symbols).tobytes()
    best = _deflate(raw, zlib.Z_HUFFMAN_ONLY)
    # One bit a symbol is the least that Huffman codes can do; where that is what they do, runs are worth a look.
    if len(best) * 8 < 1.5 * len(raw):
        best = min(best, _deflate(raw, zlib.Z_RLE), _deflate(raw, zlib.Z_DEFAULT_STRATEGY), key=len)
    return best


def _deflate(raw: bytes, strategy: int) -> bytes:
    coder = zlib.compressobj(6, zlib.DEFLATED, -15, 9, strategy)
    return coder.compress(raw) + coder.flush()


def inflate(data: bytes, count: int, section: str) -> Bytes:
    """Read exactly ``count`` symbols from a stream that must end with them; never makes more.

    Raises:
        WireError: the stream is damaged, or holds fewer or more symbols, or bytes follow it.
    """
    if count == 0:
        if data:
            raise WireError(f"{section}: {len(data)} bytes of symbols where there are none")
        return np.zeros(0, np.uint8)
    coder = zlib.decompressobj(-15)
    try:
        raw = coder.decompress(data, count)
        more = b"" if coder.eof else coder.decompress(coder.unconsumed_tail, 1)
    except zlib.error as error:
        raise WireError(f"{section}: the symbols cannot be read ({error})") from error
    if len(raw) != count or more:
        raise WireError(f"{section}: {'more' if more else len(raw)} symbols where {count} are needed")
    if not coder.eof or coder.unused_data:
        raise WireError(f"{section}: the symbols do not end where their bytes do")
    return np.frombuffer(raw, np.uint8)


def pack_fields(values: Words, widths: Widths) -> bytes:
    """Write the low ``widths[i]`` bits of ``values[i]`` one after the other, least significant bit first.

    Args:
        values: uint64[m], each below 2 ** its width.
        widths: int64[m], each from 0 to 32.

    >>> pack_fields(np.array([1, 2, 3], np.uint64), np.array([1, 2, 2])).hex()
    '1d'
    """
    ends = np.cumsum(widths)
    total = int(ends[-1]) if ends.size else 0
    if total == 0:
        return b""
    starts = ends - widths
    word, offset = starts >> 6, (starts & 63).astype(np.uint64)
    words = np.zeros((total + 63) // 64 + 1, np.uint64)
    first = np.flatnonzero(np.diff(word, prepend=-1))
    words[word[first]] = np.bitwise_or.reduceat(values << offset, first)
    across = np.flatnonzero(offset.astype(np.int64) + widths > 64)  # at most one field crosses into a word
    words[word[across] + 1] |= values[across] >> (np.uint64(64) - offset[across])
    return words.astype("<u8", copy=False).tobytes()[: (total + 7) // 8]


def unpack_fields(data: bytes, widths: Widths, section: str) -> Words:
    """Read fields as :func:`pack_fields` wrote them: uint64[m].

    Raises:
        WireError: ``data`` is not exactly as long as the widths say, or its padding bits are not 0.
    """
    ends = np.cumsum(widths, dtype=np.int64)
    total = int(ends[-1]) if ends.size else 0
    if len(data) != (total + 7) // 8:
        raise WireError(f"{section}: {len(data)} bytes of bit fields where {(total + 7) // 8} are needed")
    if total == 0:
        return np.zeros(widths.shape, np.uint64)
    if total % 8 and data[-1] >> (total % 8):
        raise WireError(f"{section}: bits are set beyond the last field")
    words = np.frombuffer(data + bytes(16 - len(data) % 8), "<u8").astype(np.uint64, copy=False)
    fields = np.empty(widths.size, np.uint64)
    for at in range(0, widths.size, BATCH):
        part = slice(at, at + BATCH)
        width = widths[part].astype(np.uint64)
        start = ends[part] - widths[part].astype(np.int64)
        word, offset = start >> 6, (start & 63).astype(np.uint64)
        bits = words[word] >> offset
        # Shifting by 64 is undefined: shift by one, then by the rest.
        bits |= (words[word + 1] << np.uint64(1)) << (np.uint64(63) - offset)
        fields[part] = bits & ((np.uint64(1) << width) - np.uint64(1))
    return fields


def varint(number: int) -> bytes:
    """Write an integer of at most 64 bits in groups of seven bits, least significant first (LEB128).

    >>> varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class Reader:
    """Takes pieces off the front of some bytes and never past their end.

    Args:
        data: the bytes; nothing in them is trusted.
        section: named in every error.
    """

    def __init__(self, data: bytes | memoryview[Any], section: str) -> None:
        self._data = memoryview(data)
        self._at = 0
        self.section = section

    @property
    def left(self) -> int:
        """Number of bytes that were not taken yet."""
        return len(self._data) - self._at

    @property
    def at(self) -> int:
        """Number of bytes taken."""
        return self._at

    def take(self, size: int) -> bytes:
        """Take ``size`` bytes.

        Raises:
            WireError: fewer are left.
        """
        return self.view(size).tobytes()

    def view(self, size: int) -> memoryview[Any]:
        """Take ``size`` bytes without copying them."""
        if size > self.left:
            raise WireError(f"{self.section}: {size} bytes are declared, {self.left} are there")
        self._at += size
        return self._data[self._at - size : self._at]

    def byte(self) -> int:
        """Take one byte."""
        return int(self.view(1)[0])

    def varint(self, what: str, most: int = (1 << 64) - 1) -> int:
        """Take an integer.

        Raises:
            WireError: it is longer than it need be, or more than ``most``.
        """
        number = 0
        for shift in range(0, 70, 7):
            group = self.byte()
            number |= (group & 0x7F) << shift
            if group < 0x80:
                if group == 0 and shift:
                    raise WireError(f"{self.section}: {what} is written in more bytes than it needs")
                if number > most:
                    raise WireError(f"{self.section}: {what} is {number}, but can be {most} at most")
                return number
        raise WireError(f"{self.section}: {what} is longer than any number")

    def text(self) -> str:
        """Take a name: one byte of length (1 to 64), then printable ASCII."""
        raw = self.take(self.byte())
        if not 1 <= len(raw) <= 64 or not raw.isascii() or not raw.decode("ascii").isprintable():
            raise WireError(f"{self.section}: a name of {len(raw)} bytes is not 1 to 64 printable ASCII characters")
        return raw.decode("ascii")

    def rest(self) -> bytes:
        """Take all that is left."""
        return self.take(self.left)

    def end(self) -> None:
        """Check that nothing is left.

        Raises:
            WireError: bytes follow.
        """
        if self.left:
            raise WireError(f"{self.section}: {self.left} bytes follow where it should end")
