"""Damages model files in their bytes, sections and fields, reads them, and measures what comes of it."""

from __future__ import annotations

import faulthandler
import json
import random
import re
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fedsparsify.errors import ArgumentError, WireError
from fedsparsify.export import SparseModel
from fedsparsify.export.artifact import SECTIONS, Artifact, decode_artifact, encode_artifact
from fedsparsify.export.reference import run
from fedsparsify.wire.varint import pack_varint, unpack_varint
from tests.export.cases import ARTIFACTS
from tests.export.sections import body_of, split
from tests.fuzz.tally import Tally

MOST_PARAMETERS = 1 << 16
"""Larger networks are refused here, so that memory can be bounded tightly."""

MOST_BYTES = 32 * MOST_PARAMETERS + (4 << 20)
"""What no reading may allocate at once: a large network's share, and 4 MiB for texts."""

SLOW = 2.0
"""Seconds that no reading may take."""

_NAMED = re.compile(r"^(artifact|header|graph|recipe|words|provenance|mask|values|buffers|checksum): ?\S")
_NUMBERS = (0, 1, -1, 2, 3, 7, 8, 9, 64, 255, 1 << 16, 1 << 20, 1 << 31, 1 << 53, 1 << 62, 10**40, 0.5, -0.0, 1e308)
_OTHERS: tuple[Any, ...] = (
    None,
    True,
    "",
    "x" * 3000,
    [],
    {},
    [[]],
    "relu",
    "lstm",
    "add",
    "conv3d",
    "embedding",
    "text",
)


@dataclass
class Figures(Tally):
    """What came of the files."""

    files: int = 0
    peak: int = 0


def _bend(rng: random.Random, data: bytes) -> bytes:
    out, at = bytearray(data), rng.randrange(len(data) + 1)
    to = min(len(data), at + rng.choice((1, 1, 2, 4, 16)))
    match rng.randrange(5):
        case 0:
            for _ in range(rng.choice((1, 1, 2, 8))):
                if out:
                    out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        case 1:
            out[at:to] = rng.randbytes(to - at)
        case 2:
            out[at:at] = rng.choice((b"\0", b"\xff", rng.randbytes(1))) * rng.choice((1, 4, 9))
        case 3:
            del out[at:to]
        case _:
            del out[at:]
    return bytes(out)


def _plain(part: bytes) -> bytes:
    if part[0] == 0:
        return part[1:]
    return zlib.decompress(part[unpack_varint(part, 1, "")[1] :], -15)


def _places(item: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) in a JSON value."""
    keys = item.keys() if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ()
    return [place for key in keys for place in ((item, key), *_places(item[key]))]


def _rewrite(rng: random.Random, part: bytes, others: list[Any]) -> bytes:
    """Change a JSON section in its fields; it stays JSON."""
    item = json.loads(_plain(part))
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = _places(item)
        if not places:
            break
        holder, key = rng.choice(places)
        old = holder[key]
        match rng.randrange(6):
            case 0:
                holder[key] = rng.choice(_NUMBERS)
            case 1:
                holder[key] = rng.choice(_OTHERS)
            case 2 if type(old) is int:
                holder[key] = old + rng.choice((-1, 1, 2, old))
            case 3:
                del holder[key]
            case 4:
                source, name = rng.choice(_places(rng.choice(others)))
                holder[key] = source[name]
            case _ if isinstance(holder, list):
                holder.insert(key, old)
    text = json.dumps(item).encode()
    return b"\0" + text if rng.random() < 0.5 else b"\1" + pack_varint(len(text)) + zlib.compress(text, 1, -15)


def mutate(rng: random.Random, seeds: list[dict[str, bytes]]) -> bytes:
    """Damage an artifact, in its bytes, its sections or its fields."""
    parts = dict(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name, other = rng.choice(SECTIONS), rng.choice(seeds)
        match rng.randrange(8):
            case 0 | 1 | 2:
                name = rng.choice(("graph", "graph", "recipe", "provenance"))
                if parts[name][0] in (0, 1):
                    try:
                        parts[name] = _rewrite(rng, parts[name], [json.loads(_plain(s[name])) for s in seeds])
                    except (ValueError, RecursionError, zlib.error, WireError, IndexError):
                        parts[name] = other[name]
            case 3:
                parts[name] = parts[name][:1] + _bend(rng, parts[name][1:])
            case 4:
                parts[name] = bytes([rng.choice((0, 1, 2, 3, 4, 16, 17, 18, 255))]) + parts[name][1:]
            case 5:
                parts[name] = other[name]
            case 6:
                size = rng.choice((0, 1, 100, 1 << 20, 1 << 40))
                name = rng.choice(SECTIONS[:4])
                bomb = zlib.compress(rng.choice((b" ", b"[", b"\n", b"0")) * min(size, 1 << 22), 9, -15)
                parts[name] = b"\1" + pack_varint(size) + bomb
            case _:
                name = rng.choice(("values", "mask", "buffers"))
                parts[name] = parts[name][:1] + rng.randbytes(rng.choice((0, 1, 8, len(parts[name]))))
    body = body_of(parts)
    if rng.random() < 0.2:
        body = _bend(rng, body)
    data = body + struct.pack("<I", zlib.crc32(body))
    return _bend(rng, data) if rng.random() < 0.05 else data


def fuzz(files: int, seed: int, start: int = 0, fail: Callable[[int, bytes, str], None] | None = None) -> Figures:
    """Read so many damaged files, and tell ``fail`` of each that is not handled as it should be."""
    seeds = [
        split(encode_artifact(artifact, values))
        for artifact in ARTIFACTS.values()
        for values in ("float32", "float16", "int8")
    ]
    figures = Figures()

    def failed(number: int, data: bytes, why: str) -> None:
        figures.failures += 1
        if fail is not None:
            fail(number, data, why)

    for number in range(start, start + files):
        data = mutate(random.Random(seed << 40 | number), seeds)
        figures.files += 1
        if number % 1000 == 0:
            faulthandler.dump_traceback_later(1800, exit=True)  # for a reading that never ends
        measured = number % 16 == 0
        if measured:
            tracemalloc.start()
        figures.attempt(number, data, partial(_read, data), named=_NAMED, slow=SLOW, fail=failed)
        if measured:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            figures.peak = max(figures.peak, peak)
            if peak > MOST_BYTES:
                failed(number, data, f"{peak} bytes were allocated")
    faulthandler.cancel_dump_traceback_later()
    return figures


def _read(data: bytes) -> None:
    artifact = decode_artifact(data, MOST_PARAMETERS)
    if len(data) < 1 << 14 and np.prod(artifact.graph.input_shape) < 1 << 12:
        _use(artifact)


def _use(artifact: Artifact) -> None:
    """What was accepted must run as its reference does, or be refused in one sentence, whatever its numbers are."""
    graph = artifact.graph
    x = np.zeros((2, *graph.input_shape), graph.input_dtype)
    with np.errstate(all="ignore"):
        try:
            expected = run(graph, x)
            found = SparseModel(artifact).forward(x)
        except ArgumentError as error:
            if "word numbers" not in str(error):
                raise
            return
    assert found.shape == expected.shape, "the engine's output has another shape"
    if np.isfinite(expected).all() and np.abs(expected).max(initial=0) < 1e6:
        assert np.abs(found - expected).max(initial=0) <= 1e-3 * max(1, np.abs(expected).max(initial=0)), (
            "other outputs"
        )
