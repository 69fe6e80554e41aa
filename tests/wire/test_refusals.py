"""Every broken rule of the format is refused by its section and reason, though the checksum is right."""

from __future__ import annotations

import re
import struct

import numpy as np
import pytest

from fedsparsify.errors import StaleReferenceError, WireError
from fedsparsify.layout import ParameterLayout
from fedsparsify.wire import Kind, Message, Reference, decode, encode
from tests.wire import spec
from tests.wire.broken import (
    LAYOUT,
    LOW_BITS,
    MASK,
    MODEL,
    REFERENCE,
    SOUND,
    SYMBOLS,
    WITHOUT_DRIFT,
    B,
    K,
    N,
    broken,
    coded,
    coded_bytes,
    coded_mask,
    full,
    read,
    weights_of,
)
from tests.wire.cases import layout_of, model_of

section, floats, varint = spec.section, spec.floats, spec.varint
NAN, INF = float("nan"), float("inf")
OVERLONG = b"\x82\x00"  # 2, in one byte too many
TOO_LONG = b"\xff" * 9 + b"\x01"
ONE = floats([1.0])


@pytest.mark.parametrize("name", SOUND)
def test_the_messages_that_are_broken_below_are_sound(name: str) -> None:
    data, reference = SOUND[name]
    decode(data, LAYOUT, reference)
    assert broken(name) == data


def test_the_parts_that_are_broken_below_are_sound() -> None:
    assert read(full()).model.w.tolist() == [0] * N
    assert read(full(values=coded())).model.w.tolist() == [0, 1] * 7 + [0]
    one_escapes = coded([0, *SYMBOLS[1:]], weights=weights_of(0, 128, 255), escapes=1, escaped=[7])
    assert read(full(values=one_escapes)).model.w.tolist() == [7, 1] + [0, 1] * 6 + [0]
    same = coded([128] * N, weights=weights_of(128), low_bits=bytes(32))
    assert read(full(values=same)).model.w.tolist() == [0] * N
    three = section(3, coded_mask([True] * 3 + [False] * 12))
    assert read(full(mask=three, values=section(0, ONE * 3))).model.nonzero == 3


HEADER = {
    "magic": (broken("model", magic=b"FSPN"), "header: magic b'FSPN' is not b'FSPM'"),
    **{f"version {v}": (broken("model", version=bytes([v])), f"header: version {v} is not") for v in (0, 1, 3, 255)},
    **{f"kind {k}": (broken("model", kind=bytes([k])), f"header: kind {k} is unknown") for k in (0, 6, 255)},
    "layout": (broken("model", layout=bytes(8)), "header: the message is of another network"),
    "fewer parameters": (broken("model", n=varint(N - 1)), "header: the message is of another network (14 param"),
    "more parameters": (broken("model", n=varint(2**63 - 1)), "header: the message is of another network (92233720"),
    "no reference": (
        broken("update", reference=bytes(4), lean=b"\0", mask=section(1, b"")),
        "mask: it refers to a mod",
    ),
    **{
        f"lean {lean}": (broken("update", lean=bytes([lean])), f"header: a lean of {lean} is unknown")
        for lean in (1, 3, 5, 7, 9, 127)
    },
    "lean without reference": (
        broken("first", lean=b"\2"),
        "header: a lean of 2, but what the message refers to has no",
    ),
    **{
        f"remember in {name}": (
            broken(name, lean=bytes([0x80 | spec.split(SOUND[name][0])["lean"][0]])),
            f"header: only a broadcast tells to remember, not a message of kind {kind}",
        )
        for name, kind in {
            "update": "update",
            "model": "model",
            "checkpoint": "checkpoint",
            "request": "request",
        }.items()
    },
    "an update of no examples": (broken("update", examples=b"\0"), "header: 0 examples in a message of kind update"),
    **{
        f"examples in {name}": (broken(name, examples=b"\1"), "header: 1 examples in a message of kind")
        for name in ("model", "checkpoint", "broadcast", "request")
    },
    **{
        f"overlong {field}": (broken("model", **{field: OVERLONG}), "header: a number is longer than it need be")
        for field in ("round", "sender", "examples", "n")
    },
    **{
        f"too long {field}": (broken("model", **{field: TOO_LONG}), "header: a number has more than 9 bytes")
        for field in ("round", "sender", "examples", "n")
    },
    "more": (broken("model", more=b"\0"), "message: 1 bytes follow the last section"),
    "nothing": (b"", "message: 0 bytes are fewer than the 23"),
    "header only": (spec.seal(SOUND["model"][0][:19]), "header: the message ends within a number"),
    "after the checksum": (SOUND["model"][0] + b"\0", "checksum: the message was damaged or cut"),
    "zero checksum": (SOUND["model"][0][:-4] + bytes(4), "checksum: the message was damaged or cut"),
}

NOT_WITHIN = section(4, coded_mask([True] * 3 + [False] * 7, first=8))
KINDS = {
    "a model that refers to something": (
        broken("model", reference=b"\1\0\0\0"),
        "header: a message of kind model refers",
    ),
    "a checkpoint from a client": (
        broken("checkpoint", sender=varint(3)),
        "header: sender 3 of a message of kind check",
    ),
    "a broadcast from a client": (broken("first", sender=varint(3)), "header: sender 3 of a message of kind broadcast"),
    "an update from the server": (full(sender=varint(0)), "header: sender 0 of a message of kind update"),
    "a request with survivors": (
        broken("request", mask=section(2, b"\1\0"), values=section(0, ONE)),
        "values: a request carries no model, but this one has 1 survivors",
    ),
    "65 metrics": (full(metrics=varint(65)), "metrics: 65 are more than 64"),
}
MASKS = {
    "unknown": (full(mask=section(5, b"")), "mask: encoding 5 is unknown"),
    "full with bytes": (full(mask=section(0, b"\1")), "mask: 1 bytes are there where none are needed"),
    "as reference with bytes": (broken("broadcast", mask=section(1, b"\1")), "mask: 1 bytes are there where none are"),
    "as reference without one": (full(mask=section(1, b"")), "mask: it refers to a model that the receiver holds, but"),
    "within reference without one": (full(mask=NOT_WITHIN), "mask: it refers to a model that the receiver holds, but"),
    "short bitmap": (full(mask=section(2, b"\0")), "mask: 1 bytes are there where 2 hold 15 bits"),
    "long bitmap": (full(mask=section(2, b"\0\0\0")), "mask: 3 bytes are there where 2 hold 15 bits"),
    "bit 15 of 15": (full(mask=section(2, b"\0\x80")), "mask: bits beyond the last parameter are set"),
    "no k": (full(mask=section(3, b"")), "mask: the message ends within a number"),
    "overlong k": (full(mask=section(3, OVERLONG)), "mask: a number is longer than it need be"),
    "k of n + 1": (full(mask=section(3, varint(N + 1))), "mask: 16 survivors are more than the 15 positions"),
    "huge k": (full(mask=section(3, varint(2**63 - 1))), "mask: 9223372036854775807 survivors are more than the 15"),
    "k above the reference's": (
        broken("update", mask=section(4, varint(K + 1))),
        "mask: 11 survivors are more than the 10",
    ),
    "bits of an empty mask": (full(mask=section(3, b"\0\1\2\3\4")), "mask: 4 bytes are there where none are needed"),
    "bits of a full mask": (full(mask=section(3, b"\x0f\1\2\3\4")), "mask: 4 bytes are there where none are needed"),
    "k one too high": (
        full(mask=section(3, coded_mask(list(MASK), 14))),
        "mask: 6 survivors are declared of 3 positions",
    ),
    "k one too low": (
        full(mask=section(3, coded_mask(list(MASK), 9))),
        "mask: 2 positions are set, but 1 are declared",
    ),
    "no whole word": (
        full(mask=section(3, coded_mask(list(MASK), None, b"\0"))),
        "mask: 5 bytes of coded bits are no mul",
    ),
    "more words": (
        full(mask=section(3, coded_mask(list(MASK), None, bytes(8)))),
        "mask: more coded bits are there than",
    ),
    "impossible words": (full(mask=section(3, b"\x08\x06" + b"\xff" * 8)), "mask: the coded bits are damaged"),
    "a section beyond the end": (full(mask=b"\2" + varint(10**6)), "mask: 1000000 bytes are declared, "),
    "a section of 2^63 - 1": (full(mask=b"\2" + varint(2**63 - 1)), "mask: 9223372036854775807 bytes are declared, "),
    "overlong length": (full(mask=b"\2\x82\0\0\0"), "mask: a number is longer than it need be"),
}

_INFLATES = spec.deflate(LOW_BITS + weights_of(128, 255) + b"\0")
_ESCAPES = weights_of(0, 128, 255)
VECTORS = {
    "unknown": (section(5, bytes(4 * N)), "encoding 5 is unknown"),
    "unknown 255": (section(255, b""), "encoding 255 is unknown"),
    "one value less": (section(0, bytes(4 * N - 4)), "56 bytes are there where 60 hold 15 values"),
    "one value more": (section(0, bytes(4 * N + 4)), "64 bytes are there where 60 hold 15 values"),
    "a byte more": (section(0, bytes(4 * N + 1)), "61 bytes are there where 60 hold 15 values"),
    "NaN": (section(0, floats([0] * 14 + [NAN])), "element 14 is nan, which is not a finite number"),
    "infinite": (section(0, floats([0, -INF] + [0] * 13)), "element 1 is -inf, which is not a finite number"),
    "no head": (section(1, bytes(5)), "5 bytes are too few"),
    "statistics beyond the end": (coded(size=65535), "statistics of 65535 bytes and 0 escapes do not fit"),
    "escapes beyond the end": (coded(escapes=15, bits=b""), "statistics of 10 bytes and 15 escapes do not fit"),
    "more escapes than values": (
        coded(escapes=16, escaped=[0] * 16),
        "statistics of 10 bytes and 16 escapes do not fit",
    ),
    "2^32 - 1 escapes": (coded(escapes=2**32 - 1), "statistics of 10 bytes and 4294967295 escapes do not fit"),
    "statistics that are no DEFLATE": (coded(packed=b"\xff" * 9), "the statistics are damaged (Error -3"),
    "statistics of one byte more": (coded(packed=_INFLATES), "the statistics are not the 288 bytes"),
    "statistics of one byte less": (coded(packed=spec.deflate(bytes(287))), "the statistics are not the 288 bytes"),
    "statistics of no class": (coded(packed=spec.deflate(b"")), "the statistics are not the 288 bytes"),
    "statistics by class": (
        coded(encoding=2, packed=spec.deflate(bytes(32 + 512))),
        "the statistics are not the 288 b",
    ),
    "statistics with no end": (coded(packed=spec.deflate(LOW_BITS + weights_of(1, 9))[:-1]), "the statistics are not"),
    "statistics, then a byte": (coded(packed=spec.deflate(LOW_BITS + weights_of(1)) + b"\0"), "the statistics are not"),
    "24 low bits": (coded(low_bits=bytes([24] + [0] * 31)), "24 low bits are more than 23"),
    "24 low bits of an absent class": (coded(low_bits=bytes([23] + [0] * 30 + [24])), "24 low bits are more than 23"),
    "statistics of no symbol": (coded(weights=bytes(256)), "the statistics are empty"),
    "an escape undeclared": (coded([0] * N, weights=_ESCAPES), "15 values escape, but 0 are declared"),
    "an escape too many": (coded(escapes=1, escaped=[0]), "0 values escape, but 1 are declared"),
    "NaN escapes": (
        coded([0, *SYMBOLS[1:]], weights=_ESCAPES, escapes=1, escaped=[NAN]),
        "element 0 is nan, which is not a finite number",
    ),
    "infinite escapes": (
        coded([*SYMBOLS[:-1], 0], weights=_ESCAPES, escapes=1, escaped=[INF]),
        "element 14 is inf, which is not a finite number",
    ),
    "no whole word": (coded(more_bits=b"\0\0\0"), "7 bytes of coded bits are no multiple of 4"),
    "more words": (coded(more_bits=bytes(8)), "more coded bits are there than values"),
    "impossible words": (coded(bits=b"\xff" * 48), "the coded bits are damaged"),
    "a word that nothing needs": (
        coded(weights=weights_of(128), low_bits=bytes(32), bits=bytes(12)),
        "more coded bits are there than values",
    ),
    "bfloat16 of no bytes": (section(3, b"\1"), "1 bytes are too few"),
    "bfloat16 of one table": (section(3, coded_bytes(weights_of(0))), "the statistics are not the 512 bytes"),
    "bfloat16 of an empty table": (section(3, coded_bytes(weights_of(0) + bytes(256))), "the statistics are empty"),
    "bfloat16 NaN": (section(3, coded_bytes(weights_of(0x7F) + weights_of(0xC0))), "element 0 is nan"),
    "bfloat16 infinite": (section(3, coded_bytes(weights_of(0xFF) + weights_of(0x80))), "element 0 is -inf"),
    "bfloat16 with more words": (
        section(3, coded_bytes(weights_of(0) * 2, bits=bytes(12))),
        "more coded bits are there than values",
    ),
    "int8 without scale": (section(4, b"\0\0\0"), "3 bytes are too few for the scales of 1 blocks"),
    "int8 without statistics": (section(4, ONE), "0 bytes are too few"),
    "int8 of two tables": (section(4, coded_bytes(weights_of(0) * 2, ONE)), "the statistics are not the 256 bytes"),
    "int8 NaN scale": (section(4, coded_bytes(weights_of(1), floats([NAN]))), "element 0 is nan"),
    "int8 infinite scale": (section(4, coded_bytes(weights_of(0), floats([INF]))), "element 0 is nan"),
    "int8 overflow": (section(4, coded_bytes(weights_of(0x80), floats([3e38]))), "element 0 is -inf"),
    "bfloat16 statistics beyond the end": (
        section(3, b"\xff\xff" + coded_bytes(weights_of(0) * 2)[2:]),
        "statistics of 65535 bytes do not fit",
    ),
    "int8, no whole word": (
        section(4, coded_bytes(weights_of(1), ONE, b"\0")),
        "1 bytes of coded bits are no multiple",
    ),
}

_TWO = varint(2)
METRICS = {
    "an unknown code": (varint(1) + b"\4" + ONE, "code 4 is unknown"),
    "NaN": (varint(1) + b"\1" + floats([NAN]), "'loss' is nan, which is not a finite number"),
    "infinite": (varint(1) + b"\2" + floats([INF]), "'seconds' is inf, which is not a finite number"),
    "infinite named": (varint(1) + b"\0\1a" + floats([-INF]), "'a' is -inf, which is not a finite number"),
    "a name that would forge a line of a log": (
        varint(1) + b"\0\5\nroot" + floats([NAN]),
        r"'\nroot' is nan, which is not a finite number",
    ),
    "one twice": (_TWO + (b"\3" + ONE) * 2, "two of them are called 'native'"),
    "one twice by name": (_TWO + (b"\0\1a" + ONE) * 2, "two of them are called 'a'"),
    "loss by code and by name": (_TWO + b"\1" + ONE + b"\0\4loss" + ONE, "two of them are called 'loss'"),
    "a name of no bytes": (varint(1) + b"\0\0" + ONE, "a name of 0 bytes is not 1 to 64"),
    "a name of 65 bytes": (varint(1) + b"\0\x41" + b"a" * 65 + ONE, "a name of 65 bytes is not 1 to 64"),
    "a name that is not ASCII": (varint(1) + b"\0\2\xc3\xa4" + ONE, "a name of 2 bytes is not 1 to 64 ASCII"),
    "an overlong count": (OVERLONG + (b"\1" + ONE) * 2, "a number is longer than it need be"),
}

_EMPTY = section(3, b"\0") + section(0, b"")
MEMORY = {
    "one twice": (_TWO + (b"\1v" + _EMPTY) * 2, "two vectors are called 'v'"),
    "a name of no bytes": (varint(1) + b"\0" + _EMPTY, "a name of 0 bytes is not 1 to 64"),
    "a name of 65 bytes": (varint(1) + b"\x41" + b"v" * 65 + _EMPTY, "a name of 65 bytes is not 1 to 64"),
    "a name that is not ASCII": (varint(1) + b"\1\xff" + _EMPTY, "a name of 1 bytes is not 1 to 64 ASCII"),
    "a bad mask": (varint(1) + b"\1v" + section(3, varint(16)) + section(0, b""), "16 survivors are more than the 15"),
    "a mask as reference": (varint(1) + b"\1v" + section(1, b"") + section(0, b""), "it refers to a model that"),
    "an unknown mask": (varint(1) + b"\1v" + section(7, b"") + section(0, b""), "encoding 7 is unknown"),
    "a value too many": (varint(1) + b"\1v" + section(3, b"\0") + section(0, ONE), "4 bytes are there where 0 hold 0"),
    "NaN": (varint(1) + b"\1v" + section(2, b"\1\0") + section(0, floats([NAN])), "element 0 is nan"),
    "fewer than declared": (_TWO + b"\1v" + _EMPTY, "1 bytes are declared, 0 are there"),
    "2^63 - 1": (varint(2**63 - 1), "1 bytes are declared, 0 are there"),
    "an overlong count": (OVERLONG, "a number is longer than it need be"),
}

BROKEN = {
    **{f"header: {name}": row for name, row in HEADER.items()},
    **{f"kinds: {name}": row for name, row in KINDS.items()},
    **{f"mask: {name}": row for name, row in MASKS.items()},
    **{f"values: {name}": (full(values=part), "values: " + what) for name, (part, what) in VECTORS.items()},
    **{f"metrics: {name}": (full(metrics=part), "metrics: " + what) for name, (part, what) in METRICS.items()},
    "metrics: fewer than declared": (
        spec.seal(full(metrics=varint(64))[:-5]),
        "metrics: 1 bytes are declared, 0",
    ),
    **{f"memory: {name}": (broken("checkpoint", memory=x), "memory: " + what) for name, (x, what) in MEMORY.items()},
    **{
        f"memory in {name}": (
            broken(name, memory=varint(1) + b"\1v" + _EMPTY),
            f"memory: 1 vectors in a message of kind {kind}",
        )
        for name, kind in {"broadcast": "broadcast", "model": "model", "request": "request"}.items()
    },
    "memory: too many in an update": (
        broken("update", memory=varint(5)),
        "memory: 5 vectors in a message of kind update, which holds at most 4",
    ),
    "buffers: one less": (full(buffers=section(0, bytes(4 * B - 4))), "buffers: 4 bytes are there where 8 hold 2"),
    "buffers: NaN": (full(buffers=section(0, floats([0, NAN]))), "buffers: element 1 is nan"),
    "buffers: unknown": (full(buffers=section(9, b"")), "buffers: encoding 9 is unknown"),
    "buffers: coded": (full(buffers=coded(packed=b"")), "buffers: the statistics are not the 288 bytes"),
    "buffers: by class": (
        full(buffers=coded([128] * B, encoding=2, packed=spec.deflate(bytes(32)))),
        "buffers: the statistics are not the 288 bytes",
    ),
}


@pytest.mark.parametrize(("data", "what"), BROKEN.values(), ids=BROKEN)
def test_a_broken_rule_is_refused_with_its_section(data: bytes, what: str) -> None:
    with pytest.raises(WireError, match="^" + re.escape(what)) as refusal:
        read(data)
    assert type(refusal.value) is WireError  # asking for all of it again would not help


# References ----------------------------------------------------------------------------------------------------------


def test_a_reference_that_the_reader_does_not_hold_is_stale() -> None:
    data, reference = SOUND["update"]
    assert reference is not None
    assert reference.drift is not None
    name = f"{reference.checksum:08x}"
    with pytest.raises(
        StaleReferenceError, match=f"header: the message refers to {name}, but the receiver holds nothing"
    ):
        read(data, None)
    for other in (
        Reference(model_of(MODEL.values + 1, MASK, MODEL.buffers), LAYOUT, reference.drift),
        Reference(MODEL, LAYOUT, reference.drift * 2),
        Reference(MODEL, LAYOUT),
        Reference(model_of(MODEL.values, MASK, MODEL.buffers + 1), LAYOUT, reference.drift),
    ):
        with pytest.raises(StaleReferenceError, match=f"but the receiver holds {other.checksum:08x}"):
            read(data, other)


@pytest.mark.parametrize("claimed", [1, REFERENCE.checksum ^ 1, 2**32 - 1])
def test_a_reference_that_nobody_holds_is_stale(claimed: int) -> None:
    with pytest.raises(StaleReferenceError, match=f"header: the message refers to {claimed:08x}"):
        read(broken("update", reference=struct.pack("<I", claimed)))


def test_a_lean_on_a_drift_that_the_reference_lacks_is_refused() -> None:
    plain = encode(Message(Kind.UPDATE, 2, MODEL, 3, 1), LAYOUT, WITHOUT_DRIFT)
    leaning = spec.join({**spec.split(plain), "lean": b"\4"})
    with pytest.raises(WireError, match=r"^header: a lean of 4, but what the message refers to has no drift"):
        read(leaning, WITHOUT_DRIFT)


@pytest.mark.parametrize("name", ["model", "checkpoint", "first", "request"])
def test_a_reader_that_holds_something_reads_a_message_that_refers_to_nothing(name: str) -> None:
    assert not read(SOUND[name][0], REFERENCE).refers


@pytest.mark.parametrize(
    "other",
    [
        layout_of([("fc", (3, 4)), ("bias", (3,))], [("running", (2,))]),
        layout_of([("fc", (4, 3)), ("b", (3,))], [("running", (2,))]),
        layout_of([("fc", (4, 3)), ("bias", (3,))], [("mean", (2,))]),
        layout_of([("fc", (4, 3)), ("bias", (3,)), ("more", (1,))], [("running", (2,))]),
        layout_of([("fc", (4, 3)), ("bias", (3,))], []),
        layout_of([("bias", (3,)), ("fc", (4, 3))], [("running", (2,))]),
    ],
    ids=["shape", "name", "buffer", "more parameters", "no buffers", "order"],
)
def test_a_message_of_another_network_is_refused(other: ParameterLayout) -> None:
    for data, _ in SOUND.values():
        with pytest.raises(WireError, match=r"^header: the message is of another network"):
            decode(data, other)


def test_an_update_against_a_reference_of_no_survivors_is_read() -> None:
    nothing = Reference(model_of(np.zeros(0, np.float32), np.zeros(N, np.bool_), MODEL.buffers), LAYOUT)
    for mask in (nothing.model.mask, MASK):
        model = model_of(np.ones(int(mask.sum()), np.float32), mask, MODEL.buffers)
        assert read(encode(Message(Kind.UPDATE, 1, model, 0, 1), LAYOUT, nothing), nothing).model.nonzero == mask.sum()
