"""A few thousand of the fuzzer's messages; ``python tests/fuzz/wire.py`` decodes as many as one has patience for."""

from __future__ import annotations

import random

from tests.fuzz.decoding import fuzz
from tests.fuzz.mutations import mutate, seeds


def test_damaged_messages_are_decoded_or_refused_quickly_and_in_bounded_memory() -> None:
    failures: list[str] = []
    figures = fuzz(4000, seed=20, fail=lambda number, data, why: failures.append(f"{number}: {why}: {data.hex()}"))
    assert failures == []
    assert figures.messages == 4000
    assert figures.accepted > 100  # else it would try the checksum alone
    assert set(figures.refused) >= {"header", "mask", "values", "buffers", "metrics", "memory", "checksum"}


def test_a_message_depends_on_its_seed_and_number_alone() -> None:
    whole = seeds()
    first = [mutate(random.Random(number), whole)[0] for number in range(50)]
    assert first == [mutate(random.Random(number), whole)[0] for number in range(50)]
    assert len(set(first)) > 45
