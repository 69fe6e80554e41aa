"""Crop and flip: what it makes of pictures, picture by picture."""

from __future__ import annotations

import numpy as np
import pytest

from fedsparsify.data.augment import crop_and_flip
from fedsparsify.errors import ArgumentError
from fedsparsify.state import Floats

PICTURES = np.random.default_rng(0).normal(size=(400, 2, 5, 6)).astype(np.float32)


def _all_variants(picture: Floats, pad: int) -> list[bytes]:
    _, height, width = picture.shape
    padded = np.pad(picture, ((0, 0), (pad, pad), (pad, pad)))
    crops = [padded[:, i : i + height, j : j + width] for i in range(2 * pad + 1) for j in range(2 * pad + 1)]
    return [variant.tobytes() for crop in crops for variant in (crop, crop[:, :, ::-1])]


def test_every_picture_becomes_one_of_its_own_crops_and_all_crops_occur() -> None:
    pad = 1
    out = crop_and_flip(pad)(PICTURES, np.random.default_rng(3))
    assert out.shape == PICTURES.shape and out.dtype == np.float32 and out.flags.c_contiguous
    chosen = [_all_variants(before, pad).index(after.tobytes()) for before, after in zip(PICTURES, out, strict=True)]
    counts = np.bincount(chosen, minlength=18)
    assert counts.min() >= 8 and counts.max() <= 40, "400 pictures over 18 variants, 22 each on average"


def test_the_same_generator_gives_the_same_bits_and_the_argument_is_left_alone() -> None:
    before = PICTURES.copy()
    augment = crop_and_flip(4)
    first, second = (augment(PICTURES, np.random.default_rng(5)) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != augment(PICTURES, np.random.default_rng(6)).tobytes()
    np.testing.assert_array_equal(PICTURES, before)


def test_pad_zero_only_mirrors() -> None:
    out = crop_and_flip(0)(PICTURES, np.random.default_rng(1))
    same = (out == PICTURES).all(axis=(1, 2, 3))
    mirrored = (out == PICTURES[..., ::-1]).all(axis=(1, 2, 3))
    assert np.all(same ^ mirrored) and 150 < mirrored.sum() < 250


def test_a_negative_pad_and_inputs_that_are_no_pictures_are_refused() -> None:
    with pytest.raises(ArgumentError, match="pad = -1 must be at least 0"):
        crop_and_flip(-1)
    with pytest.raises(ArgumentError, match=r"\[3, 64\] cannot be cropped"):
        crop_and_flip(1)(np.zeros((3, 64), np.float32), np.random.default_rng(1))
