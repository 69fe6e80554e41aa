"""Messages that are cut, bent or made to be expensive: refused, and cheaply."""

from __future__ import annotations

import contextlib
import re
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparsify.errors import WireError
from fedsparsify.layout import ParameterLayout
from fedsparsify.wire import Reference, decode
from tests.wire import spec
from tests.wire.broken import LAYOUT, LOW_BITS, SOUND, WIDE, WIDE_SOUND, coded, coded_bytes, full, read, weights_of
from tests.wire.cases import model_of, tensors, vector_layout

NAMED = re.compile(r"^(message|header|mask|values|buffers|metrics|memory|checksum): \S.+")
Row = tuple[bytes, Reference | None, ParameterLayout]
ALL: dict[str, Row] = {
    **{name: (*row, LAYOUT) for name, row in SOUND.items()},
    **{name: (*row, WIDE) for name, row in WIDE_SOUND.items()},
}


@pytest.mark.parametrize("name", ALL)
def test_a_message_cut_at_any_byte_is_refused(name: str) -> None:
    data, reference, layout = ALL[name]
    for size in range(len(data)):
        with pytest.raises(WireError, match=NAMED):
            decode(data[:size], layout, reference)


@pytest.mark.parametrize("name", ALL)
def test_a_message_cut_at_any_byte_and_sealed_again_is_refused(name: str) -> None:
    data, reference, layout = ALL[name]
    for size in range(len(data) - 4):
        with pytest.raises(WireError, match=NAMED):
            decode(spec.seal(data[:size]), layout, reference)


@pytest.mark.parametrize("name", ALL)
def test_any_flipped_bit_is_noticed(name: str) -> None:
    data, reference, layout = ALL[name]
    for at in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises(WireError, match=NAMED):
            decode(bytes(flipped), layout, reference)


@pytest.mark.parametrize("name", SOUND)
def test_with_any_flipped_bit_and_a_right_checksum_both_decoders_agree(name: str) -> None:
    data, reference, layout = ALL[name]  # the wide ones would take the specification's decoder too long
    known = None
    if reference is not None:
        model = reference.model
        known = spec.Held(model.mask, model.values, model.buffers, reference.drift)
    for at in range(8 * (len(data) - 4)):
        flipped = bytearray(data[:-4])
        flipped[at // 8] ^= 1 << at % 8
        sealed = spec.seal(bytes(flipped))
        try:
            content = spec.decode(sealed, *tensors(layout), known)
        except (spec.Malformed, AssertionError):  # the second by the coder, of impossible words
            with pytest.raises(WireError, match=NAMED):
                decode(sealed, layout, reference)
        else:
            got = decode(sealed, layout, reference)
            assert content.mask.tolist() == got.model.mask.tolist()
            assert content.values.tobytes() == got.model.values.tobytes()
            assert content.buffers.tobytes() == got.model.buffers.tobytes()
            assert content.metrics == got.metrics


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    start = b"FSPM\x02\x02" + spec.digest(*tensors(LAYOUT)) + bytes(5)
    for attempt in (data, spec.seal(data), spec.seal(b"FSPM\x02" + data), spec.seal(start + data)):
        with pytest.raises(WireError, match=NAMED):
            read(attempt)


# What it costs to find out -------------------------------------------------------------------------------------------


def peak_of(action: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refused_at(data: bytes, layout: ParameterLayout, what: str) -> int:
    """Bytes that are allocated until a message is refused."""

    def refuse() -> None:
        with pytest.raises(WireError, match="^" + re.escape(what)):
            decode(data, layout)

    return peak_of(refuse)


def test_statistics_that_inflate_to_more_are_not_inflated() -> None:
    bomb = spec.deflate(bytes(60_000_000))
    assert len(bomb) < 65536
    for section in (
        coded(packed=bomb),
        spec.section(spec.BFLOAT16, struct.pack("<H", len(bomb)) + bomb),
        spec.section(spec.INT8, bytes(4) + struct.pack("<H", len(bomb)) + bomb),
    ):
        data = full(values=section)
        assert refused_at(data, LAYOUT, "values: the statistics are not the") < 5 * len(data) + 100_000


def of_network(layout: ParameterLayout, kind: int = spec.UPDATE, /, **changed: bytes) -> bytes:
    """A message of an empty mask, where ``changed`` does not say otherwise."""
    same = {"layout": spec.digest(*tensors(layout)), "n": spec.varint(layout.n)}
    empty = {"mask": spec.section(spec.CODED, b"\0"), "values": spec.section(spec.FLOAT32, b"")}
    return spec.join({**spec.parts_of(kind, [("w", (0,))], []), **same, **empty, **changed})


LARGE = vector_layout(4_000_000)
MB = 1_000_000


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"mask": b"\2" + spec.varint(MB)}, "mask: 1000000 bytes are declared"),
        ({"mask": spec.section(spec.BITMAP, bytes(9))}, "mask: 9 bytes are there where 500000 hold"),
        ({"mask": spec.section(spec.CODED, spec.varint(5_000_000))}, "mask: 5000000 survivors are more"),
    ],
)
def test_a_mask_that_is_not_there_costs_nothing(changed: dict[str, bytes], what: str) -> None:
    assert refused_at(of_network(LARGE, **changed), LARGE, what) < 50_000


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (spec.section(spec.FLOAT32, bytes(9)), "values: 9 bytes are there where 16000000 hold"),
        (b"\0" + spec.varint(16 * MB), "values: 16000000 bytes are declared"),
        (
            spec.section(spec.CODED_FLOATS, struct.pack("<HI", 9, 4_000_000)),
            "values: statistics of 9 bytes and 4000000",
        ),
        (spec.section(spec.INT8, bytes(9)), "values: 9 bytes are too few for the scales of 15625 blocks"),
    ],
)
def test_values_that_are_not_there_cost_a_few_times_the_model(values: bytes, what: str) -> None:
    data = of_network(LARGE, mask=spec.section(spec.FULL, b""), values=values)
    assert refused_at(data, LARGE, what) < 24 * LARGE.n


def test_memory_in_a_message_that_may_have_none_costs_nothing() -> None:
    vector = b"\1v" + spec.section(spec.FULL, b"") + coded([128], weights=weights_of(128), low_bits=bytes(32))
    data = of_network(LARGE, spec.MODEL, memory=b"\1" + vector)
    assert refused_at(data, LARGE, "memory: 1 vectors in a message of kind model") < 3 * LARGE.n


def test_an_update_with_many_vectors_costs_nothing() -> None:
    data = of_network(LARGE, memory=b"\5")
    assert refused_at(data, LARGE, "memory: 5 vectors in a message of kind update, which holds at most 4") < 3 * LARGE.n


def test_a_memory_vector_that_comes_twice_is_not_made_twice() -> None:
    vector = b"\1v" + spec.section(spec.FULL, b"") + coded([128], weights=weights_of(128), low_bits=bytes(32))
    layout = vector_layout(200_000)
    once = of_network(layout, spec.CHECKPOINT, memory=b"\1" + vector)
    twice = of_network(layout, spec.CHECKPOINT, memory=b"\2" + vector + vector)
    needed = peak_of(lambda: decode(once, layout))
    assert refused_at(twice, layout, "memory: two vectors are called 'v'") < needed + 50_000


@pytest.mark.parametrize("field", ["metrics", "memory"])
def test_a_count_of_2_to_the_63_is_not_counted_to(field: str) -> None:
    data = of_network(LARGE, spec.CHECKPOINT, **{field: spec.varint(2**63 - 1)})
    start = time.process_time()
    with pytest.raises(WireError, match=f"^{field}: "):
        decode(data if field == "memory" else spec.seal(data[:-5]), LARGE)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "values",
    [
        coded([128], weights=weights_of(128), low_bits=bytes(32)),
        coded([], weights=weights_of(*range(1, 256)), low_bits=LOW_BITS, bits=b""),
        spec.section(spec.BFLOAT16, coded_bytes(weights_of(0) * 2)),
        spec.section(spec.INT8, coded_bytes(weights_of(0), bytes(4 * 1563))),
    ],
    ids=["one symbol", "no words", "bfloat16", "int8"],
)
def test_the_shortest_message_of_a_full_model_takes_a_few_times_the_model(values: bytes) -> None:
    layout = vector_layout(400_000)
    data = of_network(layout, mask=spec.section(spec.FULL, b""), values=values)
    assert len(data) < 7000

    def attempt() -> None:
        with contextlib.suppress(WireError):
            decode(data, layout)

    assert peak_of(attempt) < 40 * layout.n


def test_a_hostile_prediction_is_no_warning() -> None:
    huge = np.full(400, 3e38, np.float32)
    layout = vector_layout(400)
    reference = Reference(model_of(-huge, np.ones(400, np.bool_)), layout, -huge)
    data = of_network(
        layout,
        mask=spec.section(spec.AS_REFERENCE, b""),
        reference=struct.pack("<I", reference.checksum),
        lean=b"\x08",
        values=spec.section(spec.BFLOAT16, coded_bytes(weights_of(0x7F) + weights_of(0x7F))),
    )
    with pytest.raises(WireError, match=r"^values: element 0 is -inf"):
        decode(data, layout, reference)


def test_the_checksum_is_crc_32_of_all_before_it() -> None:
    for data, _, _ in ALL.values():
        assert data[-4:] == struct.pack("<I", zlib.crc32(data[:-4]))
