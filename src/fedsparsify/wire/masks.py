"""Masks in about as many bits as their entropy (``FORMAT.md``, section "Mask")."""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from ..errors import WireError
from ..layout import ParameterLayout
from ..state import Mask
from .reference import Reference
from .varint import pack_varint, unpack_varint

__all__ = ["decode_mask", "encode_mask", "mask_names", "survivors_declared"]

_FULL, _SAME, _BITMAP, _CODED, _CODED_WITHIN = range(5)

_models = constriction.stream.model
_queue = constriction.stream.queue


def mask_names() -> tuple[str, ...]:
    """Name the encodings by their numbers."""
    return ("full", "as reference", "bitmap", "coded", "coded within reference")


def encode_mask(mask: Mask, layout: ParameterLayout, reference: Reference | None = None) -> tuple[int, bytes]:
    """Encode a mask for a receiver that may hold another.

    Args:
        mask: bool[n].
        layout: the network's layout: each of its tensors has a density of its own.
        reference: what the receiver holds.

    Returns:
        The number of the encoding, and the bytes.
    """
    nonzero = int(np.count_nonzero(mask))
    if reference is not None and (mask is reference.model.mask or np.array_equal(mask, reference.model.mask)):
        return _SAME, b""
    if nonzero == layout.n:
        return _FULL, b""
    encoding, bits, ends = _CODED, mask, _ends(layout)
    if reference is not None:
        within = mask[reference.survivors]
        if np.count_nonzero(within) == nonzero:
            encoding, bits, ends = _CODED_WITHIN, within, np.searchsorted(reference.survivors, ends)
    coded = _encode_bits(bits, ends, nonzero)
    if len(coded) < (layout.n + 7) // 8:
        return encoding, coded
    return _BITMAP, np.packbits(mask, bitorder="little").tobytes()


def decode_mask(
    encoding: int, data: bytes, layout: ParameterLayout, reference: Reference | None = None, section: str = "mask"
) -> Mask:
    """Decode bool[n]; the inverse of :func:`encode_mask`. The receiver's own mask comes back as the same object.

    Raises:
        WireError: the bytes are no mask in that encoding, or refer to one that the receiver does not hold.
    """
    n = layout.n
    if encoding in (_FULL, _SAME) and data:
        raise WireError(f"{section}: {len(data)} bytes are there where none are needed")
    if encoding in (_SAME, _CODED_WITHIN) and reference is None:
        raise WireError(f"{section}: it refers to a model that the receiver holds, but the message names none")
    if encoding == _FULL:
        return np.ones(n, np.bool_)
    if encoding == _SAME:
        assert reference is not None
        return reference.model.mask
    if encoding == _BITMAP:
        if len(data) != (n + 7) // 8:
            raise WireError(f"{section}: {len(data)} bytes are there where {(n + 7) // 8} hold {n} bits")
        packed = np.frombuffer(data, np.uint8)
        if n % 8 and packed[-1] >> (n % 8):
            raise WireError(f"{section}: bits beyond the last parameter are set")
        return np.unpackbits(packed, count=n, bitorder="little").view(np.bool_)
    if encoding == _CODED:
        return _decode_bits(data, _ends(layout), section)
    if encoding == _CODED_WITHIN:
        assert reference is not None
        mask = np.zeros(n, np.bool_)
        ends = np.searchsorted(reference.survivors, _ends(layout))
        mask[reference.survivors] = _decode_bits(data, ends, section)
        return mask
    raise WireError(f"{section}: encoding {encoding} is unknown")


def survivors_declared(encoding: int, data: bytes, n: int) -> int | None:
    """Return the number of survivors that a mask section declares, or None where only the reference tells."""
    if encoding == _FULL:
        return n
    if encoding == _SAME:
        return None
    if encoding == _BITMAP:
        return int(np.bitwise_count(np.frombuffer(data, np.uint8)).sum())
    return unpack_varint(data, 0, "mask")[0]


def _ends(layout: ParameterLayout) -> NDArray[np.intp]:
    return np.array([slot.offset + slot.size for slot in layout.parameters], np.intp)


def _encode_bits(bits: Mask, ends: NDArray[np.intp], nonzero: int) -> bytes:
    if nonzero in (0, len(bits)):
        return pack_varint(nonzero)
    tensors = np.split(bits, ends[:-1])
    ones = [int(np.count_nonzero(tensor)) for tensor in tensors]
    coder = _queue.RangeEncoder()
    for tensor, k in zip(tensors, ones, strict=True):
        if 0 < k < len(tensor):
            coder.encode(tensor.astype(np.int32), _model(k, len(tensor)))
    words: NDArray[np.uint32] = coder.get_compressed()
    return b"".join(map(pack_varint, (nonzero, *ones[:-1]))) + words.astype("<u4").tobytes()


def _decode_bits(data: bytes, ends: NDArray[np.intp], section: str) -> Mask:
    sizes = np.diff(ends, prepend=0).tolist()
    count = int(ends[-1])
    left, at = unpack_varint(data, 0, section)
    if left > count:
        raise WireError(f"{section}: {left} survivors are more than the {count} positions there are")
    if left in (0, count):
        if at < len(data):
            raise WireError(f"{section}: {len(data) - at} bytes are there where none are needed")
        return np.full(count, left > 0, np.bool_)
    ones = []
    for _ in sizes[:-1]:
        k, at = unpack_varint(data, at, section)
        ones.append(k)
        left -= k
    ones.append(left)
    for k, size in zip(ones, sizes, strict=True):
        if not 0 <= k <= size:
            raise WireError(f"{section}: {k} survivors are declared of {size} positions")
    if (len(data) - at) % 4:
        raise WireError(f"{section}: {len(data) - at} bytes of coded bits are no multiple of 4")
    coder = _queue.RangeDecoder(np.frombuffer(data, "<u4", offset=at).astype(np.uint32))
    mask = np.zeros(count, np.bool_)
    for tensor, k in zip(np.split(mask, ends[:-1]), ones, strict=True):
        tensor[:] = k > 0
        if not 0 < k < len(tensor):
            continue
        try:
            tensor[:] = coder.decode(_model(k, len(tensor)), len(tensor))
        except AssertionError:
            raise WireError(f"{section}: the coded bits are damaged") from None
        if np.count_nonzero(tensor) != k:
            raise WireError(f"{section}: {np.count_nonzero(tensor)} positions are set, but {k} are declared")
    if not coder.maybe_exhausted():
        raise WireError(f"{section}: more coded bits are there than positions")
    return mask


def _model(ones: int, count: int) -> Any:
    return _models.Bernoulli(ones / count, perfect=False)
