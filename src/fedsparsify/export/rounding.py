"""Values of half a float, or of one byte with a scale for each row, entropy-coded (``FORMAT.md``, "Values")."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, WireError
from ..layout import ParameterLayout, Slot
from ..state import Floats, Mask
from ..wire.coder import decode_bytes, encode_bytes

__all__ = ["decode_float16", "decode_int8", "encode_float16", "encode_int8"]

_ONE, _ROWS, _UNROUNDED = range(3)
_FEWEST = 32  # survivors that are worth a scale of four bytes


def encode_float16(values: Floats) -> bytes:
    """Encode float32[k], each rounded to float16.

    Raises:
        ArgumentError: one is beyond float16.
    """
    with np.errstate(over="ignore"):
        half = values.astype("<f2")
    if not np.isfinite(half).all():
        raise ArgumentError(f"a value of {np.abs(values).max():g} is beyond float16: use float32 or int8")
    pairs = half.view(np.uint8).reshape(-1, 2)
    return encode_bytes([np.ascontiguousarray(pairs[:, 1]), np.ascontiguousarray(pairs[:, 0])])


def decode_float16(data: bytes, count: int) -> Floats:
    """Decode float32[count]; the inverse of :func:`encode_float16`.

    Raises:
        WireError: the data are not that.
    """
    high, low = decode_bytes(data, [count, count])
    return np.stack([low, high], axis=1).reshape(-1).view("<f2").astype(np.float32)


def encode_int8(values: Floats, mask: Mask, layout: ParameterLayout) -> bytes:
    """Encode float32[k], the survivors, each as one of 255 steps of its tensor's or row's largest.

    Tensors of one dimension, which are few numbers that matter much, are not rounded.

    Args:
        values: float32[k].
        mask: bool[n], where they are.
        layout: of the n parameters; a row is the first index of a tensor.
    """
    modes, scales, exact, steps = bytearray(), [], [], []
    for slot, rows, at in _tensors(mask, layout):
        own = values[at]
        if len(slot.shape) < 2:
            modes.append(_UNROUNDED)
            exact.append(own)
            continue
        modes.append(_ROWS if len(own) >= _FEWEST * slot.shape[0] else _ONE)
        group = rows if modes[-1] == _ROWS else np.zeros_like(rows)
        count = _groups(modes[-1], slot)
        largest = np.zeros(count, np.float32)
        np.maximum.at(largest, group, np.abs(own))
        scale = (largest / np.float32(127)).astype(np.float32)
        scales.append(scale)
        spread = np.where(scale > 0, scale, np.float32(1))[group]
        steps.append(np.clip(np.rint(own / spread), -127, 127).astype(np.int8))
    parts = [bytes(modes), _joined(scales).tobytes(), _joined(exact).tobytes()]
    return b"".join(parts) + encode_bytes([np.concatenate([*steps, np.zeros(0, np.int8)]).view(np.uint8)])


def decode_int8(data: bytes, mask: Mask, layout: ParameterLayout) -> Floats:
    """Decode float32[k]; the inverse of :func:`encode_int8`.

    Raises:
        WireError: the data are not that.
    """
    tensors = list(_tensors(mask, layout))
    modes = data[: len(tensors)]
    if len(modes) < len(tensors) or max(modes, default=0) > _UNROUNDED:
        raise WireError(f"values: their kinds are not {len(tensors)} numbers of at most {_UNROUNDED}")
    kinds = list(zip(modes, tensors, strict=True))
    scaled = sum(_groups(mode, slot) for mode, (slot, _, _) in kinds if mode != _UNROUNDED)
    whole = sum(at.stop - at.start for mode, (_, _, at) in kinds if mode == _UNROUNDED)
    begin = len(tensors) + 4 * (scaled + whole)
    if begin > len(data):
        raise WireError(f"values: {len(data)} bytes are too few for {scaled} scales and {whole} values")
    scales = np.frombuffer(data, "<f4", scaled, len(tensors)).astype(np.float32)
    exact = np.frombuffer(data, "<f4", whole, len(tensors) + 4 * scaled)
    total = tensors[-1][2].stop
    (coded,) = decode_bytes(data[begin:], [total - whole])
    steps = coded.view(np.int8)
    values = np.empty(total, np.float32)
    used = [0, 0, 0]
    for mode, (slot, rows, at) in kinds:
        n = at.stop - at.start
        if mode == _UNROUNDED:
            values[at] = exact[used[2] : used[2] + n]
            used[2] += n
            continue
        count = _groups(mode, slot)
        own = scales[used[0] : used[0] + count]
        with np.errstate(over="ignore", invalid="ignore"):  # refused by who asked
            values[at] = steps[used[1] : used[1] + n] * (own[rows] if mode == _ROWS else own[0])
        used[0] += count
        used[1] += n
    return values


def _groups(mode: int, slot: Slot) -> int:
    return slot.shape[0] if mode == _ROWS and slot.shape else 1


def _joined(parts: list[Floats]) -> NDArray[np.float32]:
    return np.concatenate([*parts, np.zeros(0, np.float32)]).astype("<f4")


def _tensors(mask: Mask, layout: ParameterLayout) -> list[tuple[Slot, NDArray[np.intp], slice]]:
    """Return each tensor with the rows of its survivors, and where these are among all survivors."""
    out = []
    start = 0
    for slot in layout.parameters:
        positions = np.flatnonzero(mask[slot.span])
        rows = positions // (slot.size // (slot.shape[0] if slot.shape else 1))
        out.append((slot, rows, slice(start, start + len(positions))))
        start += len(positions)
    return out
