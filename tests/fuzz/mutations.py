"""Sound messages, and how they are damaged: in their bytes, in their fields, and in what they claim."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

import numpy as np

from fedsparsify.layout import ParameterLayout
from fedsparsify.wire import Kind, Message, Reference, encode
from tests.wire import spec
from tests.wire.broken import LAYOUT, SOUND, WIDE, WIDE_REFERENCE, WIDE_SOUND
from tests.wire.cases import COMBINATIONS, model_of, random_model, vector_layout

_NUMBERS = (0, 1, 2, 3, 4, 5, 9, 10, 11, 15, 16, 127, 128, 255, 256, 1000, 2**16, 2**31, 2**32 - 1, 2**62, 2**63 - 1)
_SECTIONS = ("mask", "values", "buffers")


@dataclass(frozen=True)
class Seed:
    """A sound message, cut into its fields."""

    parts: dict[str, bytes]
    layout: ParameterLayout
    reference: Reference | None


def seeds() -> list[Seed]:
    rows = [(data, LAYOUT, reference) for data, reference in SOUND.values()]
    rows += [(data, WIDE, reference) for data, reference in WIDE_SOUND.values()]
    rows += [(encode(c.sent, c.layout, c.reference), c.layout, c.reference) for c in COMBINATIONS.values()]
    for coding in ("bfloat16", "int8"):
        message = Message(Kind.UPDATE, 1, WIDE_REFERENCE.model, 1, 1)
        rows.append((encode(message, WIDE, WIDE_REFERENCE, coding), WIDE, WIDE_REFERENCE))
    # By class, and a network that is large for what is said of it.
    n = 4000
    old = model_of(np.where(np.arange(n) % 3, 1, 5).astype(np.float32), np.ones(n, np.bool_))
    steps = np.random.default_rng(0).integers(-100, 100, n).astype(np.float32) * np.float32(2.0**-21)
    by_class = model_of(np.where(old.values == 5, old.values + steps, old.values).astype(np.float32), old.mask)
    flat = vector_layout(n)
    reference = Reference(old, flat)
    rows.append((encode(Message(Kind.UPDATE, 1, by_class, 1, 1), flat, reference), flat, reference))
    large = vector_layout(20_000)
    model, dense = random_model(large, 1, 0.001), Reference(random_model(large, 2, 1.0), large)
    for _ in range(3):
        rows.append((encode(Message(Kind.CHECKPOINT, 1, model), large), large, None))
        rows.append((encode(Message(Kind.BROADCAST, 1, dense.model), large, dense), large, dense))
    return [Seed(spec.split(data), layout, reference) for data, layout, reference in rows]


# How messages are damaged ---------------------------------------------------------------------------------------------


def _bytes(rng: random.Random, most: int = 8) -> bytes:
    """Some bytes, at times all alike."""
    if rng.random() < 0.3:
        return rng.choice((b"\0", b"\xff", rng.randbytes(1))) * rng.randint(1, most)
    return rng.randbytes(most)


def _bend(rng: random.Random, data: bytes) -> bytes:
    """Damage a string of bytes somewhere."""
    out, at = bytearray(data), rng.randrange(len(data) + 1)
    to = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 40)))
    match rng.randrange(6):
        case 0:
            for _ in range(rng.choice((1, 1, 2, 8))):
                if out:
                    out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        case 1:
            out[at:to] = _bytes(rng, to - at) if to > at else b""
        case 2:
            out[at:at] = _bytes(rng, rng.choice((1, 4, 8)))
        case 3:
            del out[at:to]
        case 4:
            del out[at:]
        case _:
            start = rng.randrange(len(data) + 1)
            out[at:to] = data[start : start + rng.choice((1, 4, 16))]
    return bytes(out)


def _statistics(rng: random.Random, part: bytes, tables: int) -> bytes:
    """Rewrite a vector section around statistics that inflate well but say something else."""
    encoding, data = spec.split_section(part)
    blocks = b""
    if encoding == spec.INT8:  # the scales end where the statistics begin: as many blocks as it takes
        blocks, data = data[:4], data[4:]
    if rng.random() < 0.7:
        encoding = rng.choice((1, 1, 2, 2, 3, 4))
    weights = bytearray(256 * {1: 1, 2: tables, 3: 2, 4: 1}.get(encoding, 1))
    for _ in range(rng.choice((1, 2, 2, 3, 20, 256))):
        weights[rng.randrange(len(weights))] = rng.choice((1, 16, 255, rng.randrange(256)))
    low_bits = bytes(rng.choice((0, 0, 1, 8, 16, 22, 23)) for _ in range(32)) if rng.random() < 0.7 else bytes(32)
    if rng.random() < 0.03:
        low_bits = low_bits[1:] + b"\x18"
    packed = spec.deflate((low_bits if encoding in (1, 2) else b"") + weights)
    escapes = rng.choice((0, 0, 0, 1, 2, rng.choice(_NUMBERS) % 2**32))
    escaped = rng.randbytes(4 * min(escapes, 9))
    words = rng.randbytes(4 * rng.choice((0, 0, 1, 2, 3, 9, 40)))
    if rng.random() < 0.2:
        words = data[-4 * rng.randrange(9) :]
    if encoding in (1, 2):
        return spec.section(encoding, struct.pack("<HI", len(packed), escapes) + packed + escaped + words)
    scales = blocks or rng.randbytes(4)
    return spec.section(encoding, (scales if encoding == 4 else b"") + struct.pack("<H", len(packed)) + packed + words)


def _mask(rng: random.Random, n: int) -> bytes:
    """A mask section out of thin air."""
    encoding = rng.choice((0, 1, 2, 3, 3, 4, 4, 5))
    if encoding == 2:
        return spec.section(2, rng.randbytes((n + 7) // 8))
    if encoding in (3, 4):
        k = rng.choice((0, 1, n, rng.randrange(n + 1), rng.choice(_NUMBERS)))
        return spec.section(encoding, spec.varint(k) + rng.randbytes(4 * rng.choice((0, 0, 1, 2, 5))))
    return spec.section(encoding, b"" if rng.random() < 0.9 else _bytes(rng))


def _vectors(rng: random.Random, n: int) -> bytes:
    """Memory out of thin air."""
    out = b""
    count = rng.choice((1, 1, 2, 5))
    for i in range(count):
        values = spec.section(0, b"") if rng.random() < 0.3 else _statistics(rng, spec.section(1, b""), 1)
        out += bytes([1, 97 + i % 4]) + _mask(rng, n) + values
    return spec.varint(count if rng.random() < 0.8 else rng.choice(_NUMBERS)) + out


def mutate(rng: random.Random, seeds: list[Seed]) -> tuple[bytes, Seed]:
    """Damage a message, in its bytes or in its fields."""
    seed = rng.choice(seeds)
    parts = dict(seed.parts)
    names = list(parts)[:-1]
    often = names + 5 * names[-5:]  # what follows the header
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name, other = rng.choice(often), rng.choice(seeds).parts
        match rng.randrange(12):
            case 0:
                parts[name] = _bend(rng, parts[name])
            case 1:
                parts[name] = other[name]
            case 2:
                parts[name], second = b"", rng.choice(often)
                parts[second] = parts[second] + seed.parts[name]
            case 3:
                name, second = rng.sample(_SECTIONS, 2)
                parts[name], parts[second] = parts[second], parts[name]
            case 4:
                name = rng.choice(("round", "n", "metrics", "memory", "memory"))
                rest = parts[name][1:] if name in ("metrics", "memory") else b""
                parts[name] = spec.varint(rng.choice(_NUMBERS)) + rest
            case 5:
                name = rng.choice(_SECTIONS)
                parts[name] = bytes([rng.randrange(7)]) + parts[name][1:]
            case 6:  # a length that lies
                name = rng.choice(_SECTIONS)
                parts[name] = parts[name][:1] + spec.varint(rng.choice(_NUMBERS)) + parts[name][2:]
            case 7 | 8:
                name = rng.choice(("values", "values", "buffers"))
                parts[name] = _statistics(rng, seed.parts[name], rng.choice((1, 2, 3, 4, 8)))
            case 9:
                parts["mask"] = _mask(rng, seed.layout.n)
            case 10:
                encoding, data = spec.split_section(seed.parts[rng.choice(_SECTIONS)])
                parts[rng.choice(_SECTIONS)] = spec.section(encoding, _bend(rng, data))
            case _:
                parts["memory"] = _vectors(rng, seed.layout.n)
                parts["kind"] = rng.choice((b"\4", b"\4", parts["kind"]))
                parts["examples"] = b"\0" if parts["kind"] == b"\4" else parts["examples"]
    body = b"".join(parts[name] for name in names)
    if rng.random() < 0.3:
        body = _bend(rng, body)
    if rng.random() < 0.05:
        return _bend(rng, body + seed.parts["checksum"]), seed
    return spec.seal(body), seed
