"""What is encoded comes back, and the bytes are those of FORMAT.md."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedsparsify.errors import ArgumentError
from fedsparsify.layout import ParameterLayout, Slot
from fedsparsify.state import Floats, Mask, ModelState
from fedsparsify.wire import SERVER, Kind, Message, decode, encode
from tests.wire import spec

NO_BUFFERS = np.zeros(0, np.float32)


def layout_of(n: int, b: int) -> ParameterLayout:
    return ParameterLayout((Slot("w", (n,), 0),), (Slot("running", (b,), 0),) if b else ())


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
names = st.text(st.characters(codec="ascii"), min_size=1, max_size=64)


@st.composite
def messages(draw: st.DrawFn) -> tuple[Message, ParameterLayout, Mask | None]:
    """Any message that may be sent, and for an update perhaps the base that both sides hold."""
    n, b = draw(st.integers(1, 40)), draw(st.integers(0, 5))
    mask = draw(st.just(np.ones(n, np.bool_)) | st.just(np.zeros(n, np.bool_)) | npst.arrays(np.bool_, n))
    w = draw(npst.arrays(np.float32, n, elements=finite))
    buffers = draw(npst.arrays(np.float32, b, elements=finite))
    kind = draw(st.sampled_from(Kind))
    message = Message(
        kind,
        draw(st.integers(0, 2**32 - 1)),
        ModelState(np.where(mask, w, np.float32(0)), mask, buffers),
        draw(st.integers(0, 2**32 - 1)),
        draw(st.integers(1, 2**64 - 1)) if kind == Kind.UPDATE else 0,
        draw(st.dictionaries(names, st.floats(allow_nan=False, allow_infinity=False), max_size=3)),
        draw(st.dictionaries(names, npst.arrays(np.float32, n, elements=finite), max_size=2))
        if kind == Kind.CHECKPOINT
        else {},
    )
    base = draw(st.none() | st.just(mask.copy()) | npst.arrays(np.bool_, n))
    return message, layout_of(n, b), base


def same_bits(a: Floats, b: Floats) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


@settings(deadline=None)
@given(messages())
def test_what_is_encoded_comes_back_bit_for_bit(case: tuple[Message, ParameterLayout, Mask | None]) -> None:
    sent, layout, base = case
    got = decode(encode(sent, layout, base), layout, base)
    assert (got.kind, got.round, got.client, got.num_examples) == (
        sent.kind,
        sent.round,
        sent.client,
        sent.num_examples,
    )
    assert isinstance(got.kind, Kind)
    assert same_bits(got.model.w, sent.model.w)
    assert same_bits(got.model.buffers, sent.model.buffers)
    assert got.model.mask.dtype == np.bool_
    assert got.model.mask.tolist() == sent.model.mask.tolist()
    assert list(got.metrics.items()) == list(sent.metrics.items())
    assert list(got.memory) == list(sent.memory)
    assert all(same_bits(got.memory[name], vector) for name, vector in sent.memory.items())


@settings(deadline=None, max_examples=50)
@given(messages())
def test_the_bytes_are_those_of_the_specification(case: tuple[Message, ParameterLayout, Mask | None]) -> None:
    sent, layout, base = case
    mask = sent.model.mask
    assert encode(sent, layout, base) == spec.message(
        layout,
        kind=int(sent.kind),
        mask=mask.tolist(),
        values=sent.model.w[mask].tolist(),
        buffers=sent.model.buffers.tolist(),
        base=base.tolist() if base is not None and np.array_equal(base, mask) else None,
        metrics=[(name.encode(), value) for name, value in sent.metrics.items()],
        memory=[(name.encode(), vector.tolist()) for name, vector in sent.memory.items()],
        header={"round": sent.round, "client": sent.client, "examples": sent.num_examples},
    )


# Written down by hand from FORMAT.md, field by field: an update of client 3 in round 5 with 7 examples. The network has
# 9 parameters, of which 0, 3 and 8 survive as 1.0, -2.0 and 0.5, and one buffer, 0.25; one metric, a = 1.5.
GOLDEN_NETWORK = '{"buffers": [["running", [1]]], "parameters": [["fc.weight", [2, 4]], ["fc.bias", [1]]]}'
GOLDEN = bytes.fromhex(
    "4653504d"  # FSPM
    "01 02 01 00"  # version 1, update, bitmap, reserved
    "05000000 03000000"  # round, client
    "669219268ea37169"  # SHA-256 of GOLDEN_NETWORK
    "0900000000000000 0300000000000000 0100000000000000"  # n, k, b
    "0700000000000000"  # examples
    "00000000 0100 0000"  # base, metrics, memory
    "09 01"  # 2^0 + 2^3; 2^0
    "0000803f 000000c0 0000003f"  # 1.0, -2.0, 0.5
    "0000803e"  # 0.25
    "01 61 000000000000f83f"  # "a", 1.5
    "7e5b8d48"  # CRC-32 of all above
)
GOLDEN_LAYOUT = ParameterLayout(
    (Slot("fc.weight", (2, 4), 0), Slot("fc.bias", (1,), 8)), (Slot("running", (1,), 0),)
)  # fmt: skip
GOLDEN_MODEL = ModelState(
    np.array([1, 0, 0, -2, 0, 0, 0, 0, 0.5], np.float32),
    np.array([1, 0, 0, 1, 0, 0, 0, 0, 1], np.bool_),
    np.array([0.25], np.float32),
)


def test_the_golden_message_is_byte_exact() -> None:
    assert hashlib.sha256(GOLDEN_NETWORK.encode()).digest()[:8] == GOLDEN[16:24]
    message = Message(Kind.UPDATE, 5, GOLDEN_MODEL, client=3, num_examples=7, metrics={"a": 1.5})
    assert encode(message, GOLDEN_LAYOUT).hex() == GOLDEN.hex()


def test_the_golden_message_is_understood() -> None:
    message = decode(GOLDEN, GOLDEN_LAYOUT)
    assert (message.kind, message.round, message.client, message.num_examples) == (Kind.UPDATE, 5, 3, 7)
    assert message.model.w.tolist() == GOLDEN_MODEL.w.tolist()
    assert message.model.mask.tolist() == GOLDEN_MODEL.mask.tolist()
    assert message.model.buffers.tolist() == [0.25]
    assert message.metrics == {"a": 1.5}


def test_under_a_shared_mask_only_values_travel() -> None:
    n = 1000
    layout = layout_of(n, 0)
    mask = np.arange(n) % 4 == 0
    model = ModelState(np.where(mask, np.float32(1), np.float32(0)), mask, NO_BUFFERS)
    update = Message(Kind.UPDATE, 1, model, 0, 1)
    assert len(encode(update, layout)) == 64 + 125 + 4 * 250 + 4
    assert len(encode(update, layout, base=mask)) == 64 + 4 * 250 + 4
    other = mask.copy()
    other[1] = True  # a purge since the broadcast: the mask has to be sent
    assert encode(update, layout, base=other) == encode(update, layout)


def test_a_dense_model_is_sent_without_a_mask() -> None:
    layout = layout_of(9, 2)
    model = ModelState(np.ones(9, np.float32), np.ones(9, np.bool_), np.zeros(2, np.float32))
    assert len(encode(Message(Kind.BROADCAST, 1, model), layout)) == 64 + 36 + 8 + 4


def test_messages_come_from_the_server_unless_a_client_is_named() -> None:
    assert SERVER == 0xFFFFFFFF
    model = ModelState(np.ones(1, np.float32), np.ones(1, np.bool_), NO_BUFFERS)
    assert decode(encode(Message(Kind.BROADCAST, 1, model), layout_of(1, 0)), layout_of(1, 0)).client == SERVER


def test_a_value_under_a_pruned_position_is_never_sent() -> None:
    layout = layout_of(2, 0)
    model = ModelState(np.array([3, 4], np.float32), np.array([True, False]), NO_BUFFERS)
    assert decode(encode(Message(Kind.MODEL, 0, model), layout), layout).model.w.tolist() == [3, 0]


def test_a_decoded_model_is_the_readers_own_to_change() -> None:
    layout = layout_of(9, 1)
    data = spec.message(layout, mask=[True] * 8 + [False], values=[1.0] * 8, buffers=[1.0])
    model = decode(data, layout).model
    model.w[0] = model.buffers[0] = 7
    model.mask[0] = False
    assert decode(data, layout).model.w[0] == 1


@pytest.mark.parametrize("name", ["", "x" * 65, "sekündlich", "\u0661"])
def test_a_name_that_the_format_cannot_hold_is_refused(name: str) -> None:
    layout = layout_of(1, 0)
    one = np.ones(1, np.float32)
    model = ModelState(one, one > 0, NO_BUFFERS)
    with pytest.raises(ArgumentError, match="is not 1 to 64 ASCII characters"):
        encode(Message(Kind.UPDATE, 1, model, 0, 1, metrics={name: 1.0}), layout)
    with pytest.raises(ArgumentError, match="is not 1 to 64 ASCII characters"):
        encode(Message(Kind.CHECKPOINT, 1, model, memory={name: one}), layout)


def test_a_model_of_another_network_is_refused_before_it_is_sent() -> None:
    two = np.ones(2, np.float32)
    with pytest.raises(
        ArgumentError, match=r"\(2,\) parameters, \(2,\) mask positions and \(0,\) buffers does not fit"
    ):
        encode(Message(Kind.MODEL, 0, ModelState(two, two > 0, NO_BUFFERS)), layout_of(3, 0))
    with pytest.raises(ArgumentError, match="a network of 2 parameters and 1 buffers"):
        encode(Message(Kind.MODEL, 0, ModelState(two, two > 0, NO_BUFFERS)), layout_of(2, 1))
    memory = {"v": np.ones(3, np.float32)}
    with pytest.raises(ArgumentError, match=r"memory v has shape \(3,\) where \(2,\) is needed"):
        encode(Message(Kind.CHECKPOINT, 0, ModelState(two, two > 0, NO_BUFFERS), memory=memory), layout_of(2, 0))


def test_extreme_finite_values_survive() -> None:
    layout = layout_of(4, 0)
    w = np.array([3.4028235e38, -3.4028235e38, 1e-45, -0.0], np.float32)
    got = decode(encode(Message(Kind.MODEL, 0, ModelState(w, np.ones(4, np.bool_), NO_BUFFERS)), layout), layout)
    assert same_bits(got.model.w, w)
    assert math.copysign(1, got.model.w[3]) == -1
