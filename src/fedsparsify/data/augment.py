"""Augmentation: changes of a whole epoch's inputs that keep their labels true."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..errors import ArgumentError
from ..state import Floats
from .record import Augment

__all__ = ["crop_and_flip"]


def crop_and_flip(pad: int) -> Augment:
    """Return the usual augmentation of CIFAR: shift each picture by up to ``pad`` pixels, mirror every second one.

    Each picture of x: float32[N, C, H, W] gets ``pad`` zeros on every side (after normalisation, the mean colour), is
    cut back to H x W at a uniformly random place, and is mirrored left to right with probability 1/2. The result
    depends on the inputs and the generator only.

    Args:
        pad: pixels, from 0; 0 only mirrors.

    Raises:
        ArgumentError: ``pad`` is negative, or later: the inputs are no pictures.

    >>> crop_and_flip(4)(np.ones((2, 3, 32, 32), np.float32), np.random.default_rng(1)).shape
    (2, 3, 32, 32)
    """
    if pad < 0:
        raise ArgumentError(f"pad = {pad} must be at least 0 pixels")
    # A partial, not a closure, so that worker processes can be sent it.
    return partial(_crop_and_flip, pad)


def _crop_and_flip(pad: int, x: Floats, rng: np.random.Generator) -> Floats:
    if x.ndim != 4:
        raise ArgumentError(f"inputs of shape {list(x.shape)} cannot be cropped: pictures have shape [N, C, H, W]")
    n, _, height, width = x.shape
    down, right = rng.integers(0, 2 * pad, size=(2, n), endpoint=True)
    mirrored = rng.random(n) < 0.5
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    # [N, C, 2 pad + 1, 2 pad + 1, H, W], a view: only the chosen window of each picture is ever copied.
    out: Floats = np.ascontiguousarray(windows[np.arange(n), :, down, right])
    out[mirrored] = out[mirrored, ..., ::-1]
    return out
