"""What is encoded comes back bit for bit, for two decoders: the codec's, and one written from FORMAT.md alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparsify.errors import ArgumentError, WireError
from fedsparsify.layout import ParameterLayout
from fedsparsify.state import Floats, ModelState
from fedsparsify.wire import SERVER, Kind, Message, Reference, decode, encode, request_full
from tests.wire import spec
from tests.wire.cases import (
    COMBINATIONS,
    Case,
    cases,
    held,
    layout_of,
    model_of,
    near,
    random_model,
    reference_of,
    spec_decode,
    tensors,
    vector_layout,
)


def same_bits(a: Floats, b: Floats) -> bool:
    return a.dtype == b.dtype == np.float32 and a.tobytes() == b.tobytes()


def assert_same(got: Message, sent: Message) -> None:
    assert type(got.kind) is Kind
    for name in ("kind", "round", "client", "num_examples", "remember"):
        assert getattr(got, name) == getattr(sent, name), name
    assert got.model.mask.dtype == np.bool_ and got.model.mask.tolist() == sent.model.mask.tolist()
    assert same_bits(got.model.values, sent.model.values)
    assert same_bits(got.model.buffers, sent.model.buffers)
    assert list(got.metrics) == list(sent.metrics)
    assert [*got.metrics.values()] == [float(np.float32(figure)) for figure in sent.metrics.values()]
    assert list(got.memory) == list(sent.memory)
    assert all(same_bits(got.memory[name], vector) for name, vector in sent.memory.items())


def assert_agree(content: spec.Content, got: Message) -> None:
    """The decoder that is written from FORMAT.md reads the same."""
    assert (content.kind, content.round, content.sender - 1) == (got.kind, got.round, got.client)
    assert (content.examples, content.remember) == (got.num_examples, got.remember)
    assert content.mask.tolist() == got.model.mask.tolist()
    assert same_bits(content.values, got.model.values)
    assert same_bits(content.buffers, got.model.buffers)
    assert content.metrics == got.metrics
    assert list(content.memory) == list(got.memory)
    assert all(same_bits(vector, got.memory[name]) for name, vector in content.memory.items())


def round_trip(case: Case) -> Message:
    data = encode(case.sent, case.layout, case.reference)
    got = decode(data, case.layout, case.reference)
    assert_agree(spec_decode(data, case.layout, case.reference), got)
    assert got.refers == (case.reference is not None)
    return got


@pytest.mark.parametrize("name", COMBINATIONS)
def test_every_combination_comes_back_and_is_as_specified(name: str) -> None:
    assert_same(round_trip(COMBINATIONS[name]), COMBINATIONS[name].sent)


@settings(deadline=None, max_examples=150)
@given(cases())
def test_any_message_comes_back_and_is_as_specified(case: Case) -> None:
    assert_same(round_trip(case), case.sent)


def test_all_encodings_of_masks_and_vectors_are_seen_above() -> None:
    masks, vectors = set(), set()
    for case in COMBINATIONS.values():
        parts = spec.split(encode(case.sent, case.layout, case.reference))
        masks.add(parts["mask"][0])
        vectors.add(parts["values"][0])
    big = reference_of(vector_layout(30000), 1, 0.01)  # with few tables, many values
    masks.add(spec.split(encode(Message(Kind.MODEL, 0, big.model), vector_layout(30000)))["mask"][0])
    assert masks == {spec.FULL, spec.AS_REFERENCE, spec.BITMAP, spec.CODED, spec.WITHIN}
    assert vectors >= {spec.FLOAT32, spec.CODED_FLOATS}


EXTREMES = np.array([3.4028235e38, -3.4028235e38, 1e-45, -1e-45, 1.1754944e-38, 0.0, -0.0, 1.0, -1.0], np.float32)


@pytest.mark.parametrize("shift", range(len(EXTREMES)))
@pytest.mark.parametrize("drift", [None, np.float32(-0.0), np.float32(1e-45), np.float32(3e38), np.float32(np.inf)])
def test_extreme_values_come_back_whatever_is_predicted_for_them(shift: int, drift: np.float32 | None) -> None:
    n = 900
    layout = layout_of([("w", (90, 10))], [("running", (n,))])
    values, full = np.tile(EXTREMES, 100), np.ones(n, np.bool_)
    old = model_of(np.roll(values, shift), full, np.roll(values, shift))
    reference = Reference(old, layout, None if drift is None else np.full(n, drift))
    sent = Message(Kind.BROADCAST, 1, model_of(values, full, values))
    assert_same(round_trip(Case(sent, layout, reference)), sent)
    assert_same(round_trip(Case(sent, layout)), sent)


@pytest.mark.parametrize("lean", [2, 4, 6, 8])
def test_each_lean_is_chosen_and_understood(lean: int) -> None:
    layout = layout_of()
    reference = reference_of(layout, 1, 1.0)
    assert reference.drift is not None
    moved = reference.model.values + np.float32(lean / 8) * reference.drift
    sent = Message(Kind.BROADCAST, 2, model_of(moved, reference.model.mask, reference.model.buffers))
    assert spec.split(encode(sent, layout, reference))["lean"] == bytes([lean])
    assert_same(round_trip(Case(sent, layout, reference)), sent)


def test_classes_that_behave_differently_are_coded_by_class() -> None:
    layout = vector_layout(4000)
    old, full = np.where(np.arange(4000) % 3, np.float32(1), np.float32(5)), np.ones(4000, np.bool_)
    reference = Reference(model_of(old, full), layout)
    steps = np.random.default_rng(0).integers(-100, 100, 4000) * 2.0**-21
    sent = Message(Kind.UPDATE, 2, model_of(np.where(old == 5, old + steps, old), full), 0, 1)
    assert spec.split(encode(sent, layout, reference))["values"][0] == spec.BY_CLASS
    assert_same(round_trip(Case(sent, layout, reference)), sent)


@pytest.mark.parametrize("drift", [True, False])
def test_a_larger_message_with_many_classes_is_as_specified(drift: bool) -> None:
    layout = layout_of([("fc", (60, 100)), ("fc.bias", (60,))], [])
    reference = reference_of(layout, 1, 0.9, drift)
    assert np.count_nonzero(reference.predict(0)[1].counts) > 3
    sent = Message(Kind.UPDATE, 2, near(reference, 3, 1e-4, pruned=0.1), 0, 1)
    assert_same(round_trip(Case(sent, layout, reference)), sent)


def test_means_of_the_drift_are_added_up_in_order_of_position() -> None:
    # Added up one by one the mean is just below 1, in NumPy's order (or rounded once) it is 1: another class.
    drift = np.zeros(64, np.float32)
    drift[:3] = 64 * (1 - 2.0**-24), 64 * (2.0**-25 - 2.0**-49), 64 * (2.0**-49 - 2.0**-53)
    drift[3:] = 64 * 2.0**-55
    layout = vector_layout(64)
    reference = Reference(model_of(np.ones(64, np.float32), np.ones(64, np.bool_)), layout, drift)
    _, classes = reference.predict(0)
    assert (
        classes.of.tolist()
        == spec.predict(
            spec.Held(reference.model.mask, reference.model.values, reference.model.buffers, drift),
            0,
            reference.model.mask,
            tensors(layout)[0],
        )[1].tolist()
    )
    assert set(classes.of.tolist()) == {15}


def test_a_reference_is_named_by_the_checksum_of_all_that_it_holds() -> None:
    case = COMBINATIONS["update b=7 drift=True nested"]
    assert case.reference is not None
    assert case.reference.drift is not None
    model, drift = case.reference.model, case.reference.drift
    known = held(case.reference)
    assert known is not None and known.mean_step is not None and known.step is not None
    assert case.reference.checksum == known.checksum
    assert spec.split(encode(case.sent, case.layout, case.reference))["reference"] == known.checksum.to_bytes(
        4, "little"
    )
    others = [
        Reference(model_of(model.values + 1, model.mask, model.buffers), case.layout, drift),
        Reference(model_of(model.values, np.roll(model.mask, 1), model.buffers), case.layout, drift),
        Reference(model_of(model.values, model.mask, model.buffers + 1), case.layout, drift),
        Reference(model, case.layout, drift + 1),
        Reference(model, case.layout),
        Reference(model, case.layout, known.step),
        Reference(model, case.layout).with_trend(model_of(drift, model.mask)),
    ]
    assert len({case.reference.checksum, *(other.checksum for other in others)}) == 8


@pytest.mark.parametrize("n", [1, 8, 5000])
def test_a_request_is_a_message_of_its_kind_and_of_no_survivors(n: int) -> None:
    layout = vector_layout(n, 3)
    data = request_full(layout, 7, 4)
    got = decode(data, layout, expected=Kind.REQUEST)
    assert (got.kind, got.round, got.client, got.model.nonzero) == (Kind.REQUEST, 7, 4, 0)
    assert_agree(spec_decode(data, layout), got)
    with pytest.raises(WireError, match="header: a message of kind request where one of kind update is due"):
        decode(data, layout, expected=Kind.UPDATE)


def test_messages_come_from_the_server_unless_a_client_is_named() -> None:
    layout = vector_layout(1)
    sent = Message(Kind.BROADCAST, 1, model_of(np.ones(1, np.float32), np.ones(1, np.bool_)))
    assert spec_decode(encode(sent, layout), layout).sender == 0
    assert decode(encode(sent, layout), layout).client == SERVER


def test_a_value_under_a_pruned_position_is_never_sent() -> None:
    layout = vector_layout(2)
    model = ModelState(np.array([3, 4], np.float32), np.array([True, False]), np.zeros(0, np.float32))
    assert decode(encode(Message(Kind.MODEL, 0, model), layout), layout).model.w.tolist() == [3, 0]


def test_an_unchanged_mask_comes_back_as_the_receivers_own() -> None:
    case = COMBINATIONS["update b=7 drift=True same mask"]
    assert case.reference is not None
    got = decode(encode(case.sent, case.layout, case.reference), case.layout, case.reference)
    assert got.model.mask is case.reference.model.mask


# What cannot be sent -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "x" * 65, "sekündlich", "\u0661"])
def test_a_name_that_the_format_cannot_hold_is_refused(name: str) -> None:
    layout = vector_layout(1)
    model = random_model(layout, 0, 1.0)
    with pytest.raises(ArgumentError, match="is not 1 to 64 ASCII characters"):
        encode(Message(Kind.UPDATE, 1, model, 0, 1, metrics={name: 1.0}), layout)
    with pytest.raises(ArgumentError, match="is not 1 to 64 ASCII characters"):
        encode(Message(Kind.CHECKPOINT, 1, model, memory={name: model.w}), layout)


@pytest.mark.parametrize("figure", [1e39, -1e300])
def test_a_metric_that_float32_cannot_hold_is_refused(figure: float) -> None:
    layout = vector_layout(1)
    with pytest.raises(ArgumentError, match=r"metric loss is .* beyond float32"):
        encode(Message(Kind.UPDATE, 1, random_model(layout, 0, 1.0), 0, 1, metrics={"loss": figure}), layout)


@pytest.mark.parametrize("other", [vector_layout(3), vector_layout(2, 1)])
def test_a_model_of_another_network_is_refused_before_it_is_sent(other: ParameterLayout) -> None:
    with pytest.raises(ArgumentError, match=r"\(2,\) parameters and \(0,\) buffers does not fit a network of"):
        encode(Message(Kind.MODEL, 0, random_model(vector_layout(2), 0, 1.0)), other)


def test_memory_of_another_network_is_refused_before_it_is_written() -> None:
    layout = vector_layout(2)
    memory = {"v": np.ones(3, np.float32)}
    with pytest.raises(ArgumentError, match=r"memory v has shape \(3,\) where \(2,\) is needed"):
        encode(Message(Kind.CHECKPOINT, 0, random_model(layout, 0, 1.0), memory=memory), layout)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**63 - 1))
def test_numbers_take_no_more_bytes_than_they_need(number: int) -> None:
    layout = vector_layout(1)
    sent = Message(Kind.MODEL, number, random_model(layout, 0, 1.0))
    assert spec.split(encode(sent, layout))["round"] == spec.varint(number)
