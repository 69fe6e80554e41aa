"""Masks in about as many bits as their entropy (``FORMAT.md``, section "Mask")."""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from ..errors import WireError
from ..state import Mask
from .varint import pack_varint, unpack_varint

__all__ = ["decode_mask", "encode_mask", "mask_names"]

_FULL, _SAME, _BITMAP, _CODED, _CODED_WITHIN = range(5)

_models = constriction.stream.model
_queue = constriction.stream.queue


def mask_names() -> tuple[str, ...]:
    """Name the encodings by their numbers."""
    return ("full", "as reference", "bitmap", "coded", "coded within reference")


def encode_mask(mask: Mask, nonzero: int, known: Mask | None, survivors: NDArray[np.intp] | None) -> tuple[int, bytes]:
    """Encode a mask for a receiver that may hold another.

    Args:
        mask: bool[n].
        nonzero: its number of survivors, k.
        known: bool[n], the mask that the receiver holds, or None.
        survivors: ascending positions that are set in ``known``, or None.

    Returns:
        The number of the encoding, and the bytes.
    """
    if known is not None and (mask is known or np.array_equal(mask, known)):
        return _SAME, b""
    if nonzero == len(mask):
        return _FULL, b""
    coded, encoding = mask, _CODED
    if survivors is not None:
        within = mask[survivors]
        if np.count_nonzero(within) == nonzero:
            coded, encoding = within, _CODED_WITHIN
    head = pack_varint(nonzero)
    bits = _encode_bits(coded, nonzero)
    bitmap = (len(mask) + 7) // 8
    if len(head) + len(bits) < bitmap:
        return encoding, head + bits
    return _BITMAP, np.packbits(mask, bitorder="little").tobytes()


def decode_mask(
    encoding: int,
    data: bytes,
    n: int,
    known: Mask | None,
    survivors: NDArray[np.intp] | None,
    section: str = "mask",
) -> Mask:
    """Decode bool[n]; the inverse of :func:`encode_mask`. The receiver's own mask comes back as the same object.

    Raises:
        WireError: the bytes are no mask in that encoding, or refer to one that the receiver does not hold.
    """
    if encoding in (_FULL, _SAME) and data:
        raise WireError(f"{section}: {len(data)} bytes are there where none are needed")
    if encoding in (_SAME, _CODED_WITHIN) and (known is None or survivors is None):
        raise WireError(f"{section}: it refers to a model that the receiver holds, but the message names none")
    if encoding == _FULL:
        return np.ones(n, np.bool_)
    if encoding == _SAME:
        assert known is not None
        return known
    if encoding == _BITMAP:
        if len(data) != (n + 7) // 8:
            raise WireError(f"{section}: {len(data)} bytes are there where {(n + 7) // 8} hold {n} bits")
        packed = np.frombuffer(data, np.uint8)
        if n % 8 and packed[-1] >> (n % 8):
            raise WireError(f"{section}: bits beyond the last parameter are set")
        return np.unpackbits(packed, count=n, bitorder="little").view(np.bool_)
    if encoding == _CODED:
        return _decode_bits(data, n, section)
    if encoding == _CODED_WITHIN:
        assert survivors is not None
        mask = np.zeros(n, np.bool_)
        mask[survivors] = _decode_bits(data, len(survivors), section)
        return mask
    raise WireError(f"{section}: encoding {encoding} is unknown")


def _encode_bits(bits: Mask, ones: int) -> bytes:
    if ones in (0, len(bits)):
        return b""
    coder = _queue.RangeEncoder()
    coder.encode(bits.astype(np.int32), _model(ones, len(bits)))
    words: NDArray[np.uint32] = coder.get_compressed()
    return words.astype("<u4").tobytes()


def _decode_bits(data: bytes, count: int, section: str) -> Mask:
    ones, at = unpack_varint(data, 0, section)
    if ones > count:
        raise WireError(f"{section}: {ones} survivors are more than the {count} positions there are")
    words = data[at:]
    if ones in (0, count):
        if words:
            raise WireError(f"{section}: {len(words)} bytes are there where none are needed")
        return np.full(count, bool(ones), np.bool_)
    if len(words) % 4:
        raise WireError(f"{section}: {len(words)} bytes of coded bits are no multiple of 4")
    coder = _queue.RangeDecoder(np.frombuffer(words, "<u4").astype(np.uint32))
    try:
        mask: Mask = coder.decode(_model(ones, count), count).astype(np.bool_)
    except AssertionError:
        raise WireError(f"{section}: the coded bits are damaged") from None
    if not coder.maybe_exhausted():
        raise WireError(f"{section}: more coded bits are there than positions")
    if np.count_nonzero(mask) != ones:
        raise WireError(f"{section}: {np.count_nonzero(mask)} positions are set, but {ones} are declared")
    return mask


def _model(ones: int, count: int) -> Any:
    return _models.Bernoulli(ones / count, perfect=False)
