"""FORMAT.md written down a second time: numbers, sections, coded bits and statistics."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import constriction
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Section = tuple[int, bytes]


class Malformed(Exception):
    """The message breaks a rule of FORMAT.md."""


def need(condition: bool, rule: str) -> None:
    if not condition:
        raise Malformed(rule)


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number % 128 + 128)
        number //= 128
    return bytes([*out, number])


def section(encoding: int, content: bytes) -> bytes:
    return bytes([encoding]) + varint(len(content)) + content


def bitmap(mask: Array) -> bytes:
    out = bytearray(math.ceil(len(mask) / 8))
    for i in np.flatnonzero(mask):
        out[i // 8] |= 1 << (i % 8)
    return bytes(out)


def floats(values: Array | Sequence[float]) -> bytes:
    return np.asarray(values, "<f4").tobytes()


class Bytes:
    """What is left of a message."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        need(size <= len(self.data) - self.at, "the message ends too early")
        self.at += size
        return self.data[self.at - size : self.at]

    def unpack(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.at)

    def varint(self) -> int:
        number = 0
        for i in range(9):
            byte = self.take(1)[0]
            number |= (byte & 127) << (7 * i)
            if byte < 128:
                need(byte > 0 or i == 0, "a varint ends in a zero byte")
                return number
        raise Malformed("a varint of more than nine bytes")

    def section(self) -> Section:
        encoding = self.take(1)[0]
        return encoding, self.take(self.varint())


class Coded:
    """Coded bits, symbol by symbol."""

    def __init__(self, words: bytes) -> None:
        need(len(words) % 4 == 0, "coded bits are no whole words")
        self.decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(words, "<u4").astype(np.uint32))

    def symbols(self, model: Any, count: int) -> Array:
        need(model is not None or count == 0, "a symbol of a model without frequencies")
        if count == 0:
            return np.zeros(0, np.int64)
        if isinstance(model, int):  # the only symbol
            return np.full(count, model, np.int64)
        return np.array([self.decoder.decode(model) for _ in range(count)], np.int64)

    def end(self) -> None:
        need(self.decoder.maybe_exhausted(), "coded bits are left")


def encode_bits(steps: Sequence[tuple[Any, Sequence[int]]]) -> bytes:
    """Coded bits of some symbols of each model; nothing is written for a model that is a number."""
    encoder = constriction.stream.queue.RangeEncoder()
    for model, symbols in steps:
        if model is not None and not isinstance(model, int) and len(symbols):
            encoder.encode(np.asarray(symbols, np.int32), model)
    words: bytes = encoder.get_compressed().astype("<u4").tobytes()
    return words


def bernoulli(ones: int, positions: int) -> Any:
    return constriction.stream.model.Bernoulli(ones / positions, perfect=False)


def categorical(weights: Sequence[int]) -> Any:
    """A model; of one symbol only: that symbol; of none: None."""
    frequencies = [0 if b == 0 else round(2 ** (b / 16)) for b in weights]
    positive = [symbol for symbol, frequency in enumerate(frequencies) if frequency]
    if len(positive) < 2:
        return positive[0] if positive else None
    return constriction.stream.model.Categorical(np.array(frequencies, np.float32), perfect=False)


def inflate(data: bytes, size: int) -> bytes:
    decompressor = zlib.decompressobj(-15)
    try:
        out = decompressor.decompress(data, size + 1)
    except zlib.error as error:
        raise Malformed("statistics are no DEFLATE") from error
    need(decompressor.eof and not decompressor.unused_data and len(out) == size, "statistics of another size")
    return out


def deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(data) + compressor.flush()


def split_section(part: bytes) -> Section:
    """A section's encoding and content."""
    return Bytes(part).section()
