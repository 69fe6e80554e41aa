"""Codings that round: by how much, and what they never do."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings

from fedsparsify.state import Floats
from fedsparsify.wire import Coding, Kind, Message, Reference, decode, encode
from tests.wire import spec
from tests.wire.cases import Case, cases, layout_of, model_of, near, reference_of, spec_decode, vector_layout
from tests.wire.test_codec import assert_agree, same_bits

LOSSY: tuple[Coding, ...] = ("bfloat16", "int8")
BLOCK = 256


def test_all_codings_but_the_lossless_are_tested_here() -> None:
    assert set(get_args(Coding)) == {"float32", *LOSSY}


def bound(coding: Coding, difference: Floats) -> Floats:
    """The most that a value may be off, but for the rounding of sums."""
    if coding == "bfloat16":
        return np.abs(difference) * np.float32(2.0**-8) + np.float32(1e-40)
    padded = np.zeros(-(-len(difference) // BLOCK) * BLOCK, np.float32)
    padded[: len(difference)] = np.abs(difference)
    step = padded.reshape(-1, BLOCK).max(1) / np.float32(127)
    half: Floats = np.repeat(step / 2, BLOCK)[: len(difference)] * np.float32(1.00001) + np.float32(1e-42)
    return half


@pytest.mark.parametrize("coding", LOSSY)
@pytest.mark.parametrize("drift", [True, False])
@pytest.mark.parametrize("change", [{}, {"pruned": 0.3}, {"pruned": 0.1, "regrown": 0.2}])
def test_the_difference_from_what_the_receiver_holds_is_rounded(
    coding: Coding, drift: bool, change: dict[str, float]
) -> None:
    layout = layout_of([("fc", (40, 30)), ("fc.bias", (40,))])
    reference = reference_of(layout, 1, 0.6, drift)
    model = near(reference, 2, 1e-3, **change)
    data = encode(Message(Kind.UPDATE, 1, model, 0, 1), layout, reference, coding)
    got = decode(data, layout, reference)
    assert_agree(spec_decode(data, layout, reference), got)
    assert got.model.mask.tolist() == model.mask.tolist()
    error = np.abs(got.model.values - model.values)
    difference = model.values - reference.model.at(model.mask)
    assert (error <= bound(coding, difference) + np.spacing(np.abs(model.values))).all()
    assert error.any()
    assert same_bits(got.model.buffers, model.buffers)


@pytest.mark.parametrize("coding", LOSSY)
@pytest.mark.parametrize("n", [1, 255, 256, 257, 2000])
def test_without_anything_held_values_themselves_are_rounded(coding: Coding, n: int) -> None:
    layout = vector_layout(n)
    values = np.random.default_rng(n).normal(0, 10.0 ** np.linspace(-3, 3, n), n).astype(np.float32)
    data = encode(Message(Kind.UPDATE, 1, model_of(values, np.ones(n, np.bool_)), 0, 1), layout, None, coding)
    assert (np.abs(decode(data, layout).model.values - values) <= bound(coding, values)).all()


@settings(deadline=None, max_examples=100)
@given(cases())
def test_any_model_is_read_again_whatever_is_rounded(case: Case) -> None:
    for coding in LOSSY:
        data = encode(case.sent, case.layout, case.reference, coding)
        got = decode(data, case.layout, case.reference)
        assert_agree(spec_decode(data, case.layout, case.reference), got)
        assert got.model.mask.tolist() == case.sent.model.mask.tolist()
        assert same_bits(got.model.buffers, case.sent.model.buffers)
        assert all(same_bits(got.memory[name], vector) for name, vector in case.sent.memory.items())


@pytest.mark.parametrize("coding", LOSSY)
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3.4028235e38, 0.0),  # rounds up to 2^128
        (-3.4028235e38, 3.4028235e38),  # their difference is beyond float32
        (3.4028235e38, 1e38),
    ],
)
def test_a_value_that_rounding_would_lead_beyond_float32_is_sent_as_it_is(
    coding: Coding, value: float, expected: float
) -> None:
    layout = vector_layout(3)
    full = np.ones(3, np.bool_)
    reference = Reference(model_of(np.full(3, expected), full), layout)
    model = model_of(np.array([value, 1, value], np.float32), full)
    got = decode(encode(Message(Kind.UPDATE, 1, model, 0, 1), layout, reference, coding), layout, reference)
    assert np.isfinite(got.model.values).all()
    assert np.abs(got.model.values[0] / np.float32(value) - 1) < 2.0**-7


@pytest.mark.parametrize(("coding", "bytes_a_value"), [("bfloat16", 2), ("int8", 1 + 4 / BLOCK)])
def test_a_rounded_update_takes_fewer_bytes_than_its_type(coding: Coding, bytes_a_value: float) -> None:
    layout = layout_of([("fc", (100, 100))], [])
    reference = reference_of(layout, 1, 1.0)
    data = encode(Message(Kind.UPDATE, 1, near(reference, 2), 0, 1), layout, reference, coding)
    assert len(spec.split(data)["values"]) < bytes_a_value * layout.n
