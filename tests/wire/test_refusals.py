"""Every MUST of FORMAT.md, broken one at a time; then truncation, damage and fuzzing. Only WireError comes out."""

from __future__ import annotations

import math
import re
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedsparsify.errors import WireError
from fedsparsify.layout import ParameterLayout, Slot
from fedsparsify.wire import decode
from tests.wire import spec

# 10 parameters, so that the bitmap has 6 unused bits, and 2 buffers.
LAYOUT = ParameterLayout((Slot("a", (4, 2), 0), Slot("b", (2,), 8)), (Slot("running", (2,), 0),))
MASK = [True, False, True, True, False, False, False, False, False, True]
VALUES = [1.0, -2.0, 3.0, 4.0]
BUFFERS = [0.5, 0.25]
ALL = [True] * 10

SOUND: dict[str, dict[str, Any]] = {
    "broadcast": {"mask": MASK, "values": VALUES},
    "dense": {"mask": ALL, "values": [1.0] * 10},
    "update": {
        "kind": spec.UPDATE,
        "mask": MASK,
        "values": VALUES,
        "base": MASK,
        "metrics": [(b"loss", 1.5), (b"seconds", 2.0)],
        "header": {"round": 3, "client": 7, "examples": 60},
    },
    "model": {"kind": spec.MODEL, "mask": MASK, "values": VALUES},
    "checkpoint": {
        "kind": spec.CHECKPOINT,
        "mask": MASK,
        "values": VALUES,
        "memory": [(b"velocity", [1.0] * 10), (b"control", [2.0] * 10)],
    },
}


def sound(name: str, **changes: Any) -> bytes:
    """A sound message with some arguments replaced; ``header`` is added to."""
    arguments = {"buffers": BUFFERS, **SOUND[name]}
    header = {**arguments.get("header", {}), **changes.pop("header", {})}
    return spec.message(LAYOUT, **{**arguments, **changes, "header": header})


def read(data: bytes, base: list[bool] | None = MASK) -> Any:
    return decode(data, LAYOUT, None if base is None else np.array(base))


@pytest.mark.parametrize("name", SOUND)
def test_the_messages_that_are_broken_below_are_sound(name: str) -> None:
    message = read(sound(name))
    assert message.model.mask.tolist() == SOUND[name]["mask"]
    assert message.model.w[message.model.mask].tolist() == SOUND[name]["values"]


# What is broken -> the message, the section that is named, and what is said about it.
BROKEN: dict[str, tuple[bytes, str]] = {
    "magic": (sound("broadcast", header={"magic": b"PK\x03\x04"}), r"header: magic b'PK\x03\x04'"),
    "version 0": (sound("broadcast", header={"version": 0}), "header: version 0 is not supported"),
    "version 2": (sound("broadcast", header={"version": 2}), "header: version 2 is not supported"),
    "kind 0": (sound("broadcast", header={"kind": 0}), "header: kind 0 is unknown"),
    "kind 5": (sound("broadcast", header={"kind": 5}), "header: kind 5 is unknown"),
    "mask encoding": (sound("broadcast", header={"mask_encoding": 3}), "header: mask encoding 3"),
    "reserved": (sound("broadcast", header={"reserved": 1}), "header: mask encoding 1, reserved 1"),
    "layout": (sound("broadcast", header={"layout": bytes(8)}), "header: the message is of another network"),
    "n": (sound("broadcast", header={"n": 11}), "header: the message is of another network (11 parameters"),
    "n huge": (sound("broadcast", header={"n": 2**64 - 1}), "header: the message is of another network"),
    "b": (sound("broadcast", header={"b": 3}), "header: the message is of another network (10 parameters, 3 buffers)"),
    "b huge": (sound("broadcast", header={"b": 2**64 - 1}), "header: the message is of another network"),
    "k more than n": (sound("broadcast", header={"k": 11}), "header: 11 survivors are more than the network's 10"),
    "k huge": (sound("broadcast", header={"k": 2**64 - 1}), "header: 18446744073709551615 survivors"),
    "update without examples": (sound("update", header={"examples": 0}), "header: 0 examples in a message of kind up"),
    "broadcast with examples": (
        sound("broadcast", header={"examples": 1}),
        "header: 1 examples in a message of kind b",
    ),
    "checkpoint with examples": (
        sound("checkpoint", header={"examples": 9}),
        "header: 9 examples in a message of kind",
    ),
    "base beside a bitmap": (sound("broadcast", header={"base": 5}), "header: base 00000005"),
    "base beside a full mask": (sound("dense", header={"base": 5}), "header: base 00000005"),
    "memory in a broadcast": (
        sound("broadcast", memory=[(b"velocity", [1.0] * 10)]),
        "header: 1 memory vectors in a message of kind broadcast",
    ),
    "memory in an update": (
        sound("update", memory=[(b"velocity", [1.0] * 10)]),
        "header: 1 memory vectors in a message of kind update",
    ),
    "full mask with k below n": (
        sound("dense", values=[1.0] * 9, header={"k": 9}),
        "mask: 10 positions are set, but the header declares 9",
    ),
    "bitmap with more bits than k": (
        sound("broadcast", values=VALUES[:3], header={"k": 3}),
        "mask: 4 positions are set, but the header declares 3",
    ),
    "bitmap with fewer bits than k": (
        sound("broadcast", values=[*VALUES, 5.0], header={"k": 5}),
        "mask: 4 positions are set, but the header declares 5",
    ),
    "unused bits of the bitmap": (
        sound("broadcast", mask_bytes=spec.bitmap([*MASK, False, True])),
        "mask: bits beyond the last parameter are set",
    ),
    "bitmap cut off": (
        spec.seal(sound("broadcast")[: spec.HEADER_SIZE + 1]),
        "mask: 2 bytes are declared, 1 are there",
    ),
    "base of another mask": (
        sound("update", base=ALL),
        f"mask: it refers to base {spec.crc32(spec.bitmap(ALL)):08x}, but the reader holds",
    ),
    "base with another k": (
        sound("update", values=VALUES[:3], header={"k": 3}),
        "mask: 4 positions are set, but the header declares 3",
    ),
    "values cut off": (sound("broadcast", values=VALUES[:1], buffers=[], header={"b": 2}), "values: 16 bytes are decl"),
    "value NaN": (sound("broadcast", values=[1.0, math.nan, 3.0, 4.0]), "values: element 1 is nan"),
    "value infinite": (sound("broadcast", values=[1.0, 2.0, 3.0, -math.inf]), "values: element 3 is -inf"),
    "buffers cut off": (sound("broadcast", buffers=[0.5], header={"b": 2}), "buffers: 8 bytes are declared, 4 are"),
    "buffer NaN": (sound("broadcast", buffers=[0.5, math.nan]), "buffers: element 1 is nan"),
    "buffer infinite": (sound("broadcast", buffers=[math.inf, 0.5]), "buffers: element 0 is inf"),
    "metrics missing": (sound("broadcast", header={"metrics": 1}), "metrics: 1 bytes are declared, 0 are there"),
    "many metrics missing": (sound("update", header={"metrics": 65535}), "metrics: 1 bytes are declared, 0 are there"),
    "metric's figure cut off": (
        sound("broadcast", extra=spec.named(b"loss", bytes(7)), header={"metrics": 1}),
        "metrics: 8 bytes are declared, 7 are there",
    ),
    "metric's name cut off": (
        sound("broadcast", extra=spec.named(b"loss", b"", length=5), header={"metrics": 1}),
        "metrics: 5 bytes are declared, 4 are there",
    ),
    "metric's name empty": (sound("update", metrics=[(b"", 1.0)]), "metrics: a name of 0 bytes"),
    "metric's name too long": (sound("update", metrics=[(b"x" * 65, 1.0)]), "metrics: a name of 65 bytes"),
    "metric's name not ASCII": (sound("update", metrics=[(b"lo\xdf", 1.0)]), "metrics: a name of 3 bytes"),
    "metric twice": (sound("update", metrics=[(b"loss", 1.0), (b"loss", 1.0)]), "metrics: two of them have one name"),
    "metric NaN": (sound("update", metrics=[(b"loss", math.nan)]), "metrics: loss is nan"),
    "metric infinite": (sound("update", metrics=[(b"loss", -math.inf)]), "metrics: loss is -inf"),
    "memory missing": (sound("checkpoint", header={"memory": 65535}), "memory: 1 bytes are declared, 0 are there"),
    "memory cut off": (sound("checkpoint", memory=[(b"v", [1.0] * 9)]), "memory: 40 bytes are declared, 36 are there"),
    "memory's name empty": (sound("checkpoint", memory=[(b"", [1.0] * 10)]), "memory: a name of 0 bytes"),
    "memory's name too long": (sound("checkpoint", memory=[(b"v" * 65, [1.0] * 10)]), "memory: a name of 65 bytes"),
    "memory's name not ASCII": (sound("checkpoint", memory=[(b"\x80", [1.0] * 10)]), "memory: a name of 1 bytes"),
    "memory twice": (sound("checkpoint", memory=[(b"v", [1.0] * 10)] * 2), "memory: two vectors have one name"),
    "memory NaN": (sound("checkpoint", memory=[(b"v", [math.nan] * 10)]), "memory: element 0 is nan"),
    "bytes after the last section": (sound("broadcast", extra=b"\x00"), "message: 1 bytes follow the last section"),
    "bytes after the checksum": (sound("broadcast") + b"\x00", "checksum: the message was damaged or cut"),
    "checksum": (sound("broadcast")[:-4] + bytes(4), "checksum: the message was damaged or cut"),
    "nothing": (b"", "message: 0 bytes are fewer than the 68"),
    "header only": (sound("broadcast")[: spec.HEADER_SIZE], "message: 64 bytes are fewer than the 68"),
    "no section after the header": (spec.seal(sound("dense")[: spec.HEADER_SIZE]), "values: 40 bytes are declared, 0"),
}


@pytest.mark.parametrize(("data", "what"), BROKEN.values(), ids=BROKEN)
def test_a_broken_rule_is_refused_with_its_section(data: bytes, what: str) -> None:
    with pytest.raises(WireError, match="^" + re.escape(what)):
        read(data)


def test_a_reference_to_a_base_is_refused_by_a_reader_without_one() -> None:
    with pytest.raises(WireError, match="mask: it refers to a base, but the reader holds none"):
        read(sound("update"), base=None)


def test_an_update_to_another_broadcast_is_refused() -> None:
    other = list(MASK)
    other[0], other[1] = other[1], other[0]  # as many survivors
    with pytest.raises(WireError, match="mask: it refers to base"):
        read(sound("update"), base=other)


@pytest.mark.parametrize(
    "other",
    [
        ParameterLayout((Slot("a", (2, 4), 0), Slot("b", (2,), 8)), LAYOUT.buffers),
        ParameterLayout((Slot("a", (4, 2), 0), Slot("c", (2,), 8)), LAYOUT.buffers),
        ParameterLayout(LAYOUT.parameters, (Slot("other", (2,), 0),)),
        ParameterLayout((*LAYOUT.parameters, Slot("more", (1,), 10)), LAYOUT.buffers),
        ParameterLayout(LAYOUT.parameters),
    ],
    ids=["shape", "name", "buffer", "more parameters", "no buffers"],
)
def test_a_message_of_another_network_is_refused(other: ParameterLayout) -> None:
    with pytest.raises(WireError, match="header: the message is of another network"):
        decode(sound("broadcast"), other)


@pytest.mark.parametrize("name", SOUND)
def test_a_message_cut_at_any_byte_is_refused(name: str) -> None:
    data = sound(name)
    for size in range(len(data)):
        with pytest.raises(WireError):
            read(data[:size])


@pytest.mark.parametrize("name", SOUND)
def test_a_message_cut_at_any_byte_and_sealed_again_is_refused(name: str) -> None:
    body = sound(name)[:-4]
    for size in range(len(body)):
        with pytest.raises(WireError):
            read(spec.seal(body[:size]))


@pytest.mark.parametrize("name", SOUND)
def test_any_flipped_bit_is_noticed(name: str) -> None:
    data = sound(name)
    for at in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            with pytest.raises(WireError):
                read(bytes(flipped))


# Where the header's numbers lie, and numbers that a liar would write there.
_numbers = st.sampled_from(
    [(4, "B"), (5, "B"), (6, "B"), (7, "B"), (8, "I"), (12, "I"), (56, "I"), (60, "H"), (62, "H")]
)
_sizes = st.sampled_from([(24, "Q"), (32, "Q"), (40, "Q"), (48, "Q")])
_liars = st.sampled_from([0, 1, 2, 3, 4, 9, 10, 11, 255, 2**16 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1])
_fields = st.tuples(_numbers | _sizes, _liars)
_bytes = st.tuples(st.integers(0, 250), st.binary(min_size=1, max_size=4))


@settings(deadline=None, max_examples=400)
@given(
    name=st.sampled_from(sorted(SOUND)),
    fields=st.lists(_fields, max_size=3),
    edits=st.lists(_bytes, max_size=3),
    cut=st.integers(0, 40),
    tail=st.binary(max_size=12),
)
@example("checkpoint", [((62, "H"), 2**16 - 1)], [], 0, b"")
@example("update", [((60, "H"), 2**16 - 1)], [], 0, b"")
@example("broadcast", [((24, "Q"), 2**62), ((32, "Q"), 2**62)], [], 0, b"")
def test_a_hostile_message_with_a_right_checksum_is_refused_or_sound(
    name: str, fields: list[Any], edits: list[tuple[int, bytes]], cut: int, tail: bytes
) -> None:
    body = bytearray(sound(name)[:-4])
    for (at, code), number in fields:
        struct.pack_into("<" + code, body, at, number % 2 ** (8 * struct.calcsize(code)))
    for at, replacement in edits:
        body[at : at + len(replacement)] = replacement
    data = _seal_fast(bytes(body[: len(body) - cut]) + tail)
    tracemalloc.start()
    try:
        message = read(data)
    except WireError:
        message = None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # A few copies of the message and of the ten parameters; a declared size that was believed would take far more.
    assert peak < 32_768
    if message is not None:
        mask = message.model.mask
        assert message.model.w.shape == mask.shape == (10,)
        assert message.model.buffers.shape == (2,)
        assert not message.model.w[~mask].any()
        assert np.isfinite(message.model.w).all()
        assert np.isfinite(message.model.buffers).all()
        assert all(math.isfinite(figure) for figure in message.metrics.values())
        assert all(v.shape == (10,) and np.isfinite(v).all() for v in message.memory.values())


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    for attempt in (data, _seal_fast(data), _seal_fast(b"FSPM\x01" + data)):
        with pytest.raises(WireError):
            read(attempt)


def _seal_fast(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def test_a_declared_size_is_checked_before_anything_of_that_size_is_made() -> None:
    # A network of 8 million parameters, and a checkpoint of which the values are missing: 32 MB must not be filled in
    # for each of its 65,535 declared memory vectors.
    n = 8_000_000
    layout = ParameterLayout((Slot("w", (n,), 0),))
    packed = sound("checkpoint")[: spec.HEADER_SIZE]
    header = bytearray(packed)
    header[6] = spec.BITMAP
    header[16:24] = spec.digest_of(layout)
    struct.pack_into("<QQQQIHH", header, 24, n, n, 0, 0, 0, 0, 65535)
    tracemalloc.start()
    with pytest.raises(WireError, match="mask: 1000000 bytes are declared, 0 are there"):
        decode(_seal_fast(bytes(header)), layout)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
