"""Symbols of 0 to 255 as bits, by how often each occurs (``FORMAT.md``, "Statistics" and "Coded bits")."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from ..errors import WireError

__all__ = [
    "SYMBOLS",
    "Encoder",
    "check_exhausted",
    "decode_bytes",
    "deflate",
    "encode_bytes",
    "expected_bytes",
    "inflate",
    "new_decoder",
    "symbol_model",
    "take",
    "weights_of",
    "words_of",
]

SYMBOLS = 256
"""How many symbols there are."""

_WEIGHT_OF = np.array([0, *(round(2 ** (b / 16)) for b in range(1, 256))], np.float32)

_models = constriction.stream.model
_Decoder = constriction.stream.queue.RangeDecoder

Encoder = constriction.stream.queue.RangeEncoder
"""Takes symbols and a model of them; see :func:`words_of`."""


def encode_bytes(columns: list[NDArray[np.uint8]]) -> bytes:
    """Entropy-code columns of bytes, each with statistics of its own."""
    weights = weights_of(np.stack([np.bincount(column, minlength=SYMBOLS) for column in columns]))
    coder = Encoder()
    for column, row in zip(columns, weights, strict=True):
        model = symbol_model(row) if len(column) else 0
        if not isinstance(model, int):
            coder.encode(column.astype(np.int32), model)
    statistics = deflate(weights.tobytes())
    return struct.pack("<H", len(statistics)) + statistics + words_of(coder)


def decode_bytes(data: bytes, counts: list[int]) -> list[NDArray[np.uint8]]:
    """Decode columns of so many bytes each; the inverse of :func:`encode_bytes`.

    Raises:
        WireError: the data are not such columns.
    """
    if len(data) < 2:
        raise WireError(f"{len(data)} bytes are too few")
    (size,) = struct.unpack_from("<H", data)
    if 2 + size > len(data):
        raise WireError(f"statistics of {size} bytes do not fit {len(data)} bytes")
    weights = np.frombuffer(inflate(data[2 : 2 + size], len(counts) * SYMBOLS), np.uint8).reshape(-1, SYMBOLS)
    coder = new_decoder(data[2 + size :])
    columns = [
        take(coder, symbol_model(row) if count else 0, count).astype(np.uint8)
        for row, count in zip(weights, counts, strict=True)
    ]
    check_exhausted(coder)
    return columns


def weights_of(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return 1 + 16 log2 of the counts, the largest of a row 255, as bytes; 0 stays 0."""
    with np.errstate(divide="ignore"):
        level = np.rint(16 * np.log2(counts))
        level += 255 - level.max(1, keepdims=True, initial=0)
    return np.where(counts > 0, np.clip(level, 1, 255), 0).astype(np.uint8)


def expected_bytes(counts: NDArray[np.int64], weights: NDArray[np.uint8]) -> float:
    """Return about how many bytes symbols that occur so often take under these weights, the weights' own included."""
    weight = _WEIGHT_OF[weights].astype(np.float64)
    share = np.where(weight > 0, weight, 1) / weight.sum(1, keepdims=True)
    return float(-(counts * np.log2(share)).sum() / 8 + len(deflate(weights.tobytes())))


def symbol_model(weights: NDArray[np.uint8]) -> Any:
    """Return the coder's model, or the only symbol that there is."""
    used = np.flatnonzero(weights)
    if len(used) == 0:
        raise WireError("the statistics are empty")
    if len(used) == 1:
        return int(used[0])
    return _models.Categorical(_WEIGHT_OF[weights], perfect=False)


def take(coder: Any, model: Any, count: int) -> NDArray[np.int32]:
    """Decode so many symbols.

    Raises:
        WireError: the bits are damaged.
    """
    if isinstance(model, int):
        return np.full(count, model, np.int32)
    try:
        symbols: NDArray[np.int32] = coder.decode(model, count)
    except AssertionError:
        raise WireError("the coded bits are damaged") from None
    return symbols


def words_of(coder: Any) -> bytes:
    """Return what an encoder has made."""
    words: NDArray[np.uint32] = coder.get_compressed()
    return words.astype("<u4").tobytes()


def new_decoder(data: bytes) -> Any:
    """Return a decoder of coded bits.

    Raises:
        WireError: they are no whole words.
    """
    if len(data) % 4:
        raise WireError(f"{len(data)} bytes of coded bits are no multiple of 4")
    return _Decoder(np.frombuffer(data, "<u4").astype(np.uint32))


def check_exhausted(coder: Any) -> None:
    """Refuse bits that a decoder has not used.

    Raises:
        WireError: there are such bits.
    """
    if not coder.maybe_exhausted():
        raise WireError("more coded bits are there than values")


def deflate(data: bytes) -> bytes:
    """Return a raw DEFLATE stream."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def inflate(data: bytes, size: int) -> bytes:
    """Return the ``size`` bytes that a raw DEFLATE stream holds.

    Raises:
        WireError: it is damaged, or holds more or fewer.
    """
    unpacker = zlib.decompressobj(-15)
    try:
        plain = unpacker.decompress(data, size + 1)
    except zlib.error as error:
        raise WireError(f"the statistics are damaged ({error})") from None
    if len(plain) != size or not unpacker.eof or unpacker.unused_data:
        raise WireError(f"the statistics are not the {size} bytes that they should be")
    return plain
