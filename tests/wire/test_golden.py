"""Messages that must be read alike for ever, and byte-exact where no compressor takes part (zlibs differ in theirs)."""

from __future__ import annotations

import numpy as np
import pytest

from fedsparsify.state import ModelState
from fedsparsify.wire import Kind, Message, Reference, decode, encode
from tests.wire import spec
from tests.wire.cases import layout_of, model_of, spec_decode
from tests.wire.test_codec import assert_agree, assert_same

GOLDEN_LAYOUT = layout_of([("fc.weight", (2, 4)), ("fc.bias", (1,))], [("running", (1,))])
GOLDEN_MODEL = ModelState(
    np.array([1, 0, 0, -2, 0, 0, 0, 0, 0.5], np.float32),
    np.array([1, 0, 0, 1, 0, 0, 0, 0, 1], np.bool_),
    np.array([0.25], np.float32),
)
GOLDEN = {
    # Written down by hand from FORMAT.md: an update of client 3 in round 300 with 7 examples; of 9 parameters, 0, 3 and
    # 8 survive as 1.0, -2.0 and 0.5.
    "an update": (
        Message(Kind.UPDATE, 300, GOLDEN_MODEL, 3, 7, {"loss": 1.5, "a": -1.0}),
        None,
        (
            "4653504d 02 02"  # FSPM, version 2, update
            "669219268ea37169 00000000 00"  # layout, reference, lean
            "ac02 04 07 09"  # round, sender, examples, n
            "02 02 0901"  # bitmap: 2^0 + 2^3; 2^0
            "00 0c 0000803f 000000c0 0000003f"  # 1.0, -2.0, 0.5
            "00 04 0000803e"  # 0.25
            "02 01 0000c03f 00 01 61 000080bf"  # loss = 1.5, a = -1.0
            "00"
        ),  # no memory
    ),
    "a broadcast as the reference": (
        Message(Kind.BROADCAST, 2, GOLDEN_MODEL, remember=True),
        Reference(GOLDEN_MODEL, GOLDEN_LAYOUT, np.zeros(3, np.float32)),
        (
            "4653504d 02 01 669219268ea37169"
            "4f927c78 80"  # CRC-32 of 0901, the survivors, the buffer and the drift; remember
            "02 00 00 09 01 00"  # round 2, from the server; mask as reference
            "00 0c 0000803f 000000c0 0000003f 00 04 0000803e 00 00"
        ),
    ),
    "a checkpoint": (
        Message(Kind.CHECKPOINT, 1, GOLDEN_MODEL, memory={"v": np.array([0, 0, 0, 0, 0, -0.0, 0, 0, 2], np.float32)}),
        None,
        (
            "4653504d 02 04 669219268ea37169 00000000 00 01 00 00 09"
            "02 02 0901 00 0c 0000803f 000000c0 0000003f 00 04 0000803e 00"
            "01 01 76 02 02 2001 00 08 00000080 00000040"
        ),  # one vector, v: elements 5 and 8, -0 and 2
    ),
    "a request": (
        Message(
            Kind.REQUEST, 5, ModelState(np.zeros(9, np.float32), np.zeros(9, np.bool_), np.zeros(1, np.float32)), 3
        ),
        None,
        (
            "4653504d 02 05 669219268ea37169 00000000 00 05 04 00 0903 01 00 00 00 00 04 00000000 00 00"
        ),  # coded mask of k = 0
    ),
}


def sealed(hex_bytes: str) -> bytes:
    return spec.seal(bytes.fromhex(hex_bytes))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_messages_are_byte_exact(name: str) -> None:
    sent, reference, expected = GOLDEN[name]
    data = encode(sent, GOLDEN_LAYOUT, reference)
    assert data.hex() == sealed(expected).hex()
    assert_same(decode(data, GOLDEN_LAYOUT, reference), sent)


# Coded: an update of 40 parameters against 28 that are held, three of which it prunes and one of which jumps to -9.
CODED_LAYOUT = layout_of([("fc", (5, 8))], [])
HELD = np.arange(40) % 10 < 7
HELD_VALUES = (np.arange(1, 41) / 8).astype(np.float32)[HELD]
DRIFT = np.where(np.arange(28) % 2, np.float32(2.0**-10), np.float32(-(2.0**-12)))
CODED_REFERENCE = Reference(model_of(HELD_VALUES, HELD), CODED_LAYOUT, DRIFT.astype(np.float32))
CODED = (
    "4653504d0202d689c7d86f869268b5b67a8b0606020a28020577fcd1c71b01551c000100000063606063156767e760c0014e300c2cf8cf7083e1"
    "2d103f1c20f70000000010c100ff0080008000008002f302000101020000000000000008102000000001020000000000000000fea0d2b915b949"
    "52000001010000003f0022c75251"
)
BFLOAT16 = (
    "4653504d0202d689c7d86f869268b5b67a8b0006020a28020577fcd1c71b0338260063602017fc671848f0fe2f94718a32737e902c7f1f6b"
    "28fc40a361aade53683fc170a0503f008936a6b4eb0232a91bf06d6f50bde5ec000001010000003f00dc9a0afb"
)
INT8 = (
    "4653504d0202d689c7d86f869268b5b67a8b0006020a28020577fcd1c71b0414ce66b33d0a00fbcf30c060dbc05a0f006637539500000101"
    "0000003f004447165d"
)


def coded_update() -> ModelState:
    mask, w = HELD.copy(), np.zeros(40, np.float32)
    mask[[3, 21, 34]] = False
    w[HELD] = HELD_VALUES + np.float32(0.75) * DRIFT + np.float32(2.0**-15) * (np.arange(28) % 5)
    w[16] = -9
    return model_of(w[mask].astype(np.float32), mask)


def test_a_golden_coded_message_is_understood() -> None:
    data = bytes.fromhex(CODED)
    parts = spec.split(data)
    assert (parts["lean"], parts["values"][0]) == (b"\6", spec.CODED_FLOATS)
    got = decode(data, CODED_LAYOUT, CODED_REFERENCE)
    assert_same(got, Message(Kind.UPDATE, 6, coded_update(), 1, 10, {"loss": 0.5}))
    assert_agree(spec_decode(data, CODED_LAYOUT, CODED_REFERENCE), got)


@pytest.mark.parametrize(("data", "error"), [(BFLOAT16, 1e-9), (INT8, 11.2 / 254)])
def test_a_golden_lossy_message_is_understood(data: str, error: float) -> None:
    got = decode(bytes.fromhex(data), CODED_LAYOUT, CODED_REFERENCE)
    assert np.abs(got.model.w - coded_update().w)[np.arange(40) != 16].max() < error
    assert_agree(spec_decode(bytes.fromhex(data), CODED_LAYOUT, CODED_REFERENCE), got)
