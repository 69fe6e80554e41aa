"""Decodes damaged messages, and measures what comes of them."""

from __future__ import annotations

import faulthandler
import random
import re
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from fedsparsify.errors import WireError
from fedsparsify.layout import ParameterLayout
from fedsparsify.wire import Kind, Message, Reference, decode
from tests.fuzz.mutations import Seed, mutate, seeds
from tests.fuzz.tally import Tally
from tests.wire.broken import LAYOUT, REFERENCE, WIDE, WIDE_REFERENCE

SLOW = 1.0
"""Seconds that no decoding may take."""

MOST_BYTES = 32.0
"""Bytes a declared value that no decoding may allocate at once."""

_NAMED = re.compile(r"^(message|header|mask|values|buffers|metrics|memory|checksum): \S")
_MEASURED = 32  # every so many-th message's memory is measured


@dataclass
class Figures(Tally):
    """What came of the messages."""

    messages: int = 0
    peak: float = 0.0
    """Bytes that were allocated at once, at most, by parameter of the network, buffer element and vector of the memory,
    beyond four for each byte of the message and 64 KiB."""

    def add(self, other: Figures) -> None:
        self.messages += other.messages
        self.accepted += other.accepted
        self.refused += other.refused
        self.failures += other.failures
        self.slowest = max(self.slowest, other.slowest)
        self.peak = max(self.peak, other.peak)

    def summary(self, seconds: float) -> str:
        refused = ", ".join(f"{name} {count}" for name, count in self.refused.most_common())
        return (
            f"{self.messages} messages in {seconds:.0f} s: {self.failures} failures, {self.accepted} accepted,"
            f" {sum(self.refused.values())} refused ({refused}); slowest {1e3 * self.slowest:.1f} ms,"
            f" peak {self.peak:.1f} bytes a declared value"
        )


def _read(data: bytes, layout: ParameterLayout, reference: Reference | None) -> None:
    _check(decode(data, layout, reference), layout)


def _check(message: Message, layout: ParameterLayout) -> None:
    model = message.model
    assert model.mask.shape == (layout.n,) and model.mask.dtype == np.bool_, "mask"
    assert model.values.shape == (model.nonzero,) and model.buffers.shape == (layout.b,), "shapes"
    assert np.isfinite(model.values).all() and np.isfinite(model.buffers).all(), "values"
    assert np.isfinite(list(message.metrics.values())).all(), "metrics"
    assert all(v.shape == (layout.n,) and np.isfinite(v).all() for v in message.memory.values()), "memory"
    most = {Kind.CHECKPOINT: len(message.memory), Kind.UPDATE: 4}.get(message.kind, 0)
    assert len(message.memory) <= most, "memory that the kind may not have"


def _excess(data: bytes, seed: Seed, reference: Reference | None) -> float:
    """Bytes a declared value that decoding allocates at once."""
    vectors = 1
    tracemalloc.start()
    try:
        vectors += len(decode(data, seed.layout, reference).memory)
    except WireError:
        vectors += 5 * (data[5:6] == bytes([Kind.CHECKPOINT]))  # as many as there were at most
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return max(0.0, peak - 4 * len(data) - 65536) / ((seed.layout.n + seed.layout.b) * vectors)


def fuzz(messages: int, seed: int, start: int = 0, fail: Callable[[int, bytes, str], None] | None = None) -> Figures:
    """Decode so many damaged messages, and tell ``fail`` of each that is not handled as it should be."""
    whole, figures = seeds(), Figures()
    references = {LAYOUT: REFERENCE, WIDE: WIDE_REFERENCE}

    def failed(number: int, data: bytes, why: str) -> None:
        figures.failures += 1
        if fail is not None:
            fail(number, data, why)

    for number in range(start, start + messages):
        rng = random.Random(seed << 40 | number)
        data, origin = mutate(rng, whole)
        reference = origin.reference
        if rng.random() < 0.3:
            reference = rng.choice((None, references.get(origin.layout)))
        figures.messages += 1
        if number % 1000 == 0:
            faulthandler.dump_traceback_later(1800, exit=True)  # for a decoding that never ends
        read = partial(_read, data, origin.layout, reference)
        figures.attempt(number, data, read, named=_NAMED, slow=SLOW, fail=failed)
        if number % _MEASURED == 0:
            excess = _excess(data, origin, reference)
            figures.peak = max(figures.peak, excess)
            if excess > MOST_BYTES:
                failed(number, data, f"{excess:.0f} bytes a declared value were allocated")
    faulthandler.cancel_dump_traceback_later()
    return figures
