"""What a message costs, as the documentation promises it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparsify.layout import ParameterLayout
from fedsparsify.state import Mask, ModelState
from fedsparsify.wire import Kind, Message, Reference, encode
from tests.wire import spec
from tests.wire.cases import Case, cases, layout_of, masks, model_of, near, random_model, reference_of, vector_layout

THREE_METRICS = {"loss": 0.123, "seconds": 45.6, "native": 1.0}


def sizes(case: Case) -> dict[str, int]:
    return {name: len(data) for name, data in spec.split(encode(case.sent, case.layout, case.reference)).items()}


def entropy_in_bytes(ones: int, positions: int) -> float:
    p = ones / positions
    return 0.0 if p in (0, 1) else -positions * (p * math.log2(p) + (1 - p) * math.log2(1 - p)) / 8


def noise(n: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Bits that nothing foresees, of finite numbers."""
    bits = np.random.default_rng(seed).integers(0, 2**32, n, dtype=np.uint32)
    return np.where(bits >> 23 & 255 == 255, 0, bits).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize(("n", "b"), [(1, 0), (1, 1), (10, 3), (300, 0), (20_000, 100), (300_000, 5)])
def test_a_dense_message_of_noise_takes_four_bytes_a_value_and_64_more(n: int, b: int) -> None:
    model = model_of(noise(n, 0), np.ones(n, np.bool_), noise(b, 1))
    sent = Message(Kind.UPDATE, 1000, model, 9999, 1_000_000, THREE_METRICS)
    assert len(encode(sent, vector_layout(n, b))) <= 4 * n + 4 * b + 64


@settings(deadline=None, max_examples=100)
@given(cases())
def test_no_section_is_larger_than_if_it_were_not_coded(case: Case) -> None:
    size = sizes(case)
    k, b = case.sent.model.nonzero, case.layout.b
    assert size["mask"] <= math.ceil(case.layout.n / 8) + 3
    assert size["values"] <= 4 * k + 3
    assert size["buffers"] <= 4 * b + 3


@pytest.mark.parametrize("n", [1, 100, 100_000])
def test_an_unchanged_mask_takes_two_bytes(n: int) -> None:
    layout = vector_layout(n)
    reference = reference_of(layout, 1)
    for mask in (reference.model.mask, reference.model.mask.copy()):
        sent = Message(Kind.UPDATE, 1, model_of(reference.model.values, mask), 0, 1)
        assert sizes(Case(sent, layout, reference))["mask"] == 2


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(masks(n), masks(n))))
def test_any_mask_takes_at_most_a_bit_a_parameter_and_three_bytes(pair: tuple[Mask, Mask]) -> None:
    mask, old = pair
    layout = vector_layout(len(mask))
    sent = Message(Kind.UPDATE, 1, model_of(np.ones(int(mask.sum()), np.float32), mask), 0, 1)
    reference = Reference(model_of(np.ones(int(old.sum()), np.float32), old), layout)
    for known in (None, reference):
        assert sizes(Case(sent, layout, known))["mask"] <= math.ceil(len(mask) / 8) + 3


@pytest.mark.parametrize("n", [1000, 100_000])
@pytest.mark.parametrize("density", [0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.99])
def test_a_mask_takes_about_its_entropy(n: int, density: float) -> None:
    layout = vector_layout(n)
    model = random_model(layout, 1, density)
    known = sizes(Case(Message(Kind.MODEL, 1, model), layout))["mask"]
    assert known <= 1.05 * entropy_in_bytes(model.nonzero, n) + 64


@pytest.mark.parametrize("pruned", [0.001, 0.05, 0.5])
def test_a_mask_within_the_receivers_takes_about_the_entropy_among_its_survivors(pruned: float) -> None:
    layout = vector_layout(100_000)
    reference = reference_of(layout, 1, 0.1)
    model = near(reference, 2, pruned=pruned)
    size = sizes(Case(Message(Kind.UPDATE, 1, model, 0, 1), layout, reference))["mask"]
    assert size <= 1.05 * entropy_in_bytes(model.nonzero, reference.model.nonzero) + 64


# What is known to the receiver need not be sent ----------------------------------------------------------------------

WIDE = layout_of([("fc", (100, 80)), ("fc.bias", (100,))], [("running", (50,))])


def values_of(model: ModelState, reference: Reference | None, layout: ParameterLayout = WIDE) -> int:
    return sizes(Case(Message(Kind.UPDATE, 1, model, 0, 1), layout, reference))["values"]


@pytest.mark.parametrize("step", [1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("drift", [True, False])
def test_an_update_near_what_the_receiver_holds_is_smaller(step: float, drift: bool) -> None:
    reference = reference_of(WIDE, 1, drift=drift)
    model = near(reference, 2, step)
    saved = 1 - values_of(model, reference) / values_of(model, None)
    assert saved > {1e-5: 0.3, 1e-4: 0.25, 1e-3: 0.1}[step]


def test_the_nearer_it_is_the_smaller_it_is() -> None:
    reference = reference_of(WIDE, 1, drift=False)
    costs = [values_of(near(reference, 2, step), reference) for step in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)]
    assert costs == sorted(costs) and costs[0] < costs[-1] / 2


def test_a_drift_that_goes_on_makes_a_broadcast_smaller() -> None:
    known = reference_of(WIDE, 1)
    model = near(known, 2, 1e-5)
    without = Reference(known.model, WIDE)
    assert values_of(model, known) < 0.85 * values_of(model, without)


def test_what_the_receiver_holds_already_costs_next_to_nothing() -> None:
    reference = reference_of(WIDE, 1)
    same = Message(Kind.BROADCAST, 1, reference.model)
    assert len(encode(same, WIDE, reference)) < 250
