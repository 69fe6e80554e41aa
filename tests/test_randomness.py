"""Every random choice has a stream of its own, which never changes."""

from __future__ import annotations

import itertools

import numpy as np

from fedsparsify.randomness import derive, derive_seed


def test_the_same_purpose_draws_the_same_numbers() -> None:
    first, second = (derive(7, "batches", round=3, client=2).random(100) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert derive_seed(7, "torch", round=3, client=2) == derive_seed(7, "torch", round=3, client=2)


def test_every_seed_purpose_round_and_client_has_its_own_stream() -> None:
    keys = list(itertools.product([0, 1, 2**40], ["batches", "participants"], [0, 1, 2], [-1, 0, 1]))
    assert len({derive(s, p, round=r, client=k).random() for s, p, r, k in keys}) == len(keys)
    assert len({derive_seed(s, p, round=r, client=k) for s, p, r, k in keys}) == len(keys)


def test_the_server_is_the_client_nobody_names() -> None:
    assert derive_seed(1, "partition") == derive_seed(1, "partition", round=0, client=-1)
    assert derive_seed(1, "partition") != derive_seed(1, "partition", client=0)


def test_drawing_from_one_stream_leaves_the_others_alone() -> None:
    expected = derive(1, "a").random(5)
    derive(1, "b").random(1000)
    np.testing.assert_array_equal(derive(1, "a").random(5), expected)


def test_streams_are_the_same_in_every_version() -> None:
    # Recorded once: runs of yesterday must resume, and published numbers must be repeatable.
    assert derive_seed(1, "batches", round=3, client=0) == 623934035709363509
    assert derive(1, "batches", round=3, client=0).bit_generator.random_raw() == 12888797377842267118


def test_seeds_fit_63_bits_and_use_them() -> None:
    seeds = [derive_seed(seed, "torch") for seed in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) >= 2**62
    assert {seed % 2 for seed in seeds} == {0, 1}


def test_no_global_generator_is_touched() -> None:
    before = str(np.random.get_state())  # noqa: NPY002
    derive(1, "batches").random(10)
    assert str(np.random.get_state()) == before  # noqa: NPY002
