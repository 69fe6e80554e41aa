"""Parameters and fixed point: what fits, what is refused, and with which error a mean comes out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsparsify.errors import ArgumentError
from fedsparsify.secure import CIPHERS, FixedPoint, Scheme


@pytest.mark.parametrize(("participants", "bits", "plain"), [(1, 26, 18), (25, 26, 18), (27, 27, 18), (100, 27, 18)])
def test_few_participants_need_the_smallest_ring(participants: int, bits: int, plain: int) -> None:
    assert Scheme.of(participants) == Scheme(1024, bits, plain)


def test_more_participants_get_a_larger_ring_and_too_many_are_refused() -> None:
    assert Scheme.of(1000) == Scheme(2048, 36, 24)
    with pytest.raises(ArgumentError, match=r"10000 participants are more than the \d{4} whose noise"):
        Scheme.of(10_000)


def test_the_noise_of_the_most_participants_fits_and_of_one_more_does_not() -> None:
    for scheme in (Scheme(), Scheme(1024, 27, 18), Scheme(2048, 36, 24)):
        room = scheme.modulus / (2 * scheme.plain_modulus)
        noise = [8 * math.sqrt(k * (21 / 2 + 1 / 12)) for k in (scheme.participants, scheme.participants + 1)]
        assert noise[0] <= room < noise[1]
        scheme.check(scheme.participants)
        with pytest.raises(ArgumentError, match="can add from 1 to"):
            scheme.check(scheme.participants + 1)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((512, 20, 14), "ring = 512 must be one of 1024, 2048"),
        ((1024, 28, 18), "must be at most 27 for 128 bits of security"),
        ((2048, 55, 18), "must be at most 54"),
        ((1024, 26, 26), "plain_bits = 26 must be from 14 to less than modulus_bits = 26"),
        ((1024, 26, 10), "plain_bits = 10 must be from 14"),
        ((1024, 26, 24), "leave no room for noise"),
        ((2048, 54, 27), "check values would overflow"),
        ((2048, 20, 15), "there is no prime of 15 bits that is 1 modulo 4096"),
    ],
)
def test_parameters_that_cannot_work_are_refused(given: tuple[int, int, int], says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        Scheme(*given)


def test_every_scheme_that_is_accepted_has_its_primes_and_its_sums_fit() -> None:
    accepted = 0
    for ring, most in ((1024, 27), (2048, 54)):
        for bits in range(14, most + 1):
            for plain in range(10, bits):
                try:
                    scheme = Scheme(ring, bits, plain)
                except ArgumentError:
                    continue
                accepted += 1
                assert scheme.modulus.bit_length() == bits and scheme.plain_modulus.bit_length() == plain
                assert scheme.modulus % (2 * ring) == scheme.plain_modulus % (2 * ring) == 1
                assert scheme.participants * (scheme.modulus - 1) < 1 << 64
                assert scheme.values * (scheme.plain_modulus - 1) ** 2 < 1 << 63
    assert accepted > 100


@given(
    st.integers(1, 100),
    st.floats(0.01, 10),
    st.integers(0, 2**32 - 1),
)
def test_a_mean_of_shares_is_right_to_a_rounding_each(clients: int, bound: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    modulus = Scheme.of(clients).plain_modulus
    fixed = FixedPoint(bound, modulus, clients)
    values = rng.uniform(-1.2 * bound, 1.2 * bound, (clients, 50)).astype(np.float32)
    weights = rng.dirichlet(np.ones(clients))
    shares = [fixed.integers(v, float(p)) for v, p in zip(values, weights, strict=True)]
    total = np.sum([share for share, _ in shares], axis=0)
    assert np.abs(total).max() <= (modulus - 1) // 2
    clipped = np.clip(values.astype(np.float64), -bound, bound)
    assert [count for _, count in shares] == [
        int(np.count_nonzero(np.abs(v) > bound)) for v in values.astype(np.float64)
    ]
    exact = (weights[:, None] * clipped).sum(axis=0)
    assert np.abs(fixed.reals(total) - exact).max() <= (clients * 0.5 + 0.01) / fixed.scale + 1e-6 * bound


def test_all_clients_at_the_bound_do_not_overflow() -> None:
    for clients in (1, 2, 3, 25, 100):
        fixed = FixedPoint(0.5, Scheme.of(clients).plain_modulus, clients)
        one, _ = fixed.integers(np.full(3, -0.5, np.float32), 1 / clients)
        assert np.abs(clients * one).max() <= (fixed.modulus - 1) // 2


def test_who_is_missing_is_left_out_of_the_mean() -> None:
    fixed = FixedPoint(0.5, Scheme.of(3).plain_modulus, 3)
    values = np.array([0.1, -0.4], np.float32)
    shares = [fixed.integers(values, p)[0] for p in (0.5, 0.3)]
    np.testing.assert_allclose(fixed.reals(shares[0] + shares[1], 0.8), values, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ArgumentError, match="not finite"):
        FixedPoint(0.5, 249857, 3).integers(np.array([bad], np.float32), 0.5)


@pytest.mark.parametrize(("bound", "people"), [(0.0, 1), (float("nan"), 1), (float("inf"), 1), (1.0, 0), (1.0, 249857)])
def test_a_bound_or_number_that_leaves_no_integers_is_refused(bound: float, people: int) -> None:
    with pytest.raises(ArgumentError):
        FixedPoint(bound, 249857, people)


@pytest.mark.parametrize("weight", [0.0, -0.1, 1.1, float("nan")])
def test_a_weight_out_of_its_range_is_refused(weight: float) -> None:
    with pytest.raises(ArgumentError, match="weight"):
        FixedPoint(0.5, 249857, 3).integers(np.zeros(1, np.float32), weight)


def test_a_bound_so_large_that_changes_are_rounded_away_is_refused() -> None:
    with pytest.raises(ArgumentError, match="is too large: changes would be rounded to multiples of"):
        FixedPoint(5000.0, 249857, 26)


@pytest.mark.parametrize(
    ("participants", "needed"),
    [
        (2, False),
        (26, False),
        (27, False),
        (54, False),
        (55, True),
        (106, True),
        (107, False),
        (144, False),
        (145, True),
    ],
)
def test_a_server_needs_the_library_only_where_it_expands_seeds(
    participants: int, needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Scheme] = []
    monkeypatch.setattr("fedsparsify.secure.ciphers.sealing.expand", lambda scheme, seeds: asked.append(scheme))
    CIPHERS["bfv"].prepare(Scheme.of(participants), participants)
    assert bool(asked) == needed
