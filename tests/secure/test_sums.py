"""Sums under encryption are exact, cost the bytes that they must, and show whatever was done to them."""

from __future__ import annotations

import dataclasses
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("tenseal")  # the extra "encryption"

from fedsparsify.errors import ArgumentError, TamperedError, WireError
from fedsparsify.secure import Key, Scheme, add, decrypt, encrypt, expand, make_key, sealing
from fedsparsify.secure.messages import SUMS, Kind, Sum, pack, read, unpack, write

SCHEME = Scheme.of(3)
COUNT = 1500  # two ciphertexts
ROUND = 7
RUN = b"run 1"


@pytest.fixture(scope="module")
def key() -> Key:
    return make_key(SCHEME)


def values_of(clients: int, count: int, scheme: Scheme, seed: int = 1) -> NDArray[np.int64]:
    most = ((scheme.plain_modulus - 1) // 2) // clients
    return np.random.default_rng(seed).integers(-most, most + 1, (clients, count))


def uploads_of(key: Key, values: NDArray[np.int64], context: bytes = RUN) -> list[bytes]:
    return [encrypt(key, own, client=k, round=ROUND, context=context) for k, own in enumerate(values)]


def total_of(uploads: list[bytes], scheme: Scheme = SCHEME, count: int = COUNT, whole: bool = False) -> bytes:
    return add(enumerate(uploads), scheme, round=ROUND, count=count, expand=expand if whole else None)


def read_by(
    key: Key, message: bytes, count: int = COUNT, context: bytes = RUN, least: int = 1, round: int = ROUND
) -> NDArray[np.int64]:
    return decrypt(key, message, round=round, count=count, context=context, least=least)[0]


def upload_in(data: bytes) -> Sum:
    return read(data, (Kind.UPLOAD,), SCHEME, None, ROUND, COUNT)


def sum_in(data: bytes, scheme: Scheme = SCHEME, count: int = COUNT) -> Sum:
    return read(data, SUMS, scheme, None, ROUND, count)


@pytest.fixture(scope="module")
def uploads(key: Key) -> list[bytes]:
    return uploads_of(key, values_of(3, COUNT, SCHEME))


def sealed_again(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


@pytest.mark.parametrize("clients", [1, 2, 10, 25, 100, 110, 150])
def test_the_sum_is_that_of_the_integers(clients: int) -> None:
    scheme = Scheme.of(clients)
    key = make_key(scheme)
    values = values_of(clients, 100, scheme)
    pairs = list(enumerate(uploads_of(key, values)))
    for message in (
        add(pairs, scheme, round=ROUND, count=100),
        add(reversed(pairs), scheme, round=ROUND, count=100, expand=expand),
    ):
        total, who = decrypt(key, message, round=ROUND, count=100, context=RUN, least=clients)
        assert np.array_equal(total, values.sum(axis=0))
        assert who == tuple(range(clients))


@pytest.mark.parametrize("count", [0, 1, 1021, 1022, 1023, 5000])
def test_any_number_of_values_is_carried(key: Key, count: int) -> None:
    values = values_of(2, count, SCHEME)
    message = total_of(uploads_of(key, values), count=count)
    assert np.array_equal(read_by(key, message, count), values.sum(axis=0))


def test_the_largest_sums_are_exact(key: Key) -> None:
    most = (SCHEME.plain_modulus - 1) // 2
    values = np.array([[most, -most, 0, most - 1], [0, 0, 0, 1]])
    message = total_of(uploads_of(key, values), count=4)
    assert read_by(key, message, 4).tolist() == [most, -most, 0, most]


@pytest.mark.parametrize("value", [124929, -124929, np.iinfo(np.int64).min, np.iinfo(np.int64).max])
def test_a_value_that_does_not_fit_is_refused(key: Key, value: int) -> None:
    assert (SCHEME.plain_modulus - 1) // 2 == 124928
    with pytest.raises(ArgumentError, match="does not fit: the largest are 124928 and -124928"):
        encrypt(key, np.array([0, value]), client=0, round=ROUND, context=RUN)


@pytest.mark.parametrize("values", [np.array([0.9]), np.array([np.nan]), np.zeros((2, 2), np.int64), np.array(3)])
def test_what_is_no_vector_of_integers_is_refused(key: Key, values: NDArray[np.int64]) -> None:
    with pytest.raises(ArgumentError, match=r"values must be int64\[k\]"):
        encrypt(key, values, client=0, round=ROUND, context=RUN)


@pytest.mark.parametrize(("client", "round"), [(-1, 1), (1 << 32, 1), (0, -1), (0, 1 << 32)])
def test_a_client_or_round_out_of_range_is_refused(key: Key, client: int, round: int) -> None:
    with pytest.raises(ArgumentError, match="must be from 0 to 4294967295"):
        encrypt(key, np.zeros(1, np.int64), client=client, round=round, context=RUN)


def test_a_dense_model_costs_what_the_parameters_say(key: Key) -> None:
    count = 100 * SCHEME.values
    uploads = uploads_of(key, values_of(10, count, SCHEME))
    assert len(uploads[0]) / count < 3.35
    assert len(total_of(uploads, count=count)) / count < 3.95


def test_many_participants_seeds_give_way_to_their_polynomials() -> None:
    scheme = Scheme.of(100)
    uploads = uploads_of(make_key(scheme), values_of(100, 1000, scheme))
    forwarded, expanded = (total_of(uploads, scheme, 1000, whole) for whole in (False, True))
    assert len(expanded) < 0.75 * len(forwarded)
    assert len(expanded) / 1022 < 7.4


def test_a_server_adds_up_without_the_library(uploads: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise AssertionError("the library is not needed")

    before = total_of(uploads)
    monkeypatch.setattr(sealing, "_library", none)
    assert total_of(uploads) == before


def test_two_encryptions_of_the_same_have_nothing_in_common(key: Key) -> None:
    zeros = np.zeros(COUNT, np.int64)
    a, b = (upload_in(encrypt(key, zeros, client=0, round=ROUND, context=RUN)) for _ in range(2))
    assert a.seeds != b.seeds
    sent = [np.concatenate([row[:used] for row, used in zip(u.first, SCHEME.used(COUNT), strict=True)]) for u in (a, b)]
    assert np.count_nonzero(sent[0] == sent[1]) < 5
    # As a uniform number would: what is encrypted does not show.
    assert abs(float(sent[0].mean()) / SCHEME.modulus - 0.5) < 0.05


def test_what_no_value_needs_is_not_sent(key: Key) -> None:
    sizes = {
        n: len(encrypt(key, np.zeros(n, np.int64), client=0, round=ROUND, context=RUN)) for n in (1, 5, 1022, 1023)
    }
    assert sizes[5] - sizes[1] == 4 * 26 // 8
    assert sizes[1022] - sizes[1] == -(-1024 * 26 // 8) - -(-3 * 26 // 8)
    assert sizes[1023] - sizes[1022] == 64 + -(-3 * 26 // 8)


def test_the_library_has_the_primes_that_the_server_adds_modulo() -> None:
    for scheme in (Scheme(), Scheme(1024, 27, 18), Scheme(2048, 36, 24), Scheme(2048, 54, 20), Scheme(2048, 26, 16)):
        assert sealing._Seal(scheme).context.parameters_set()


# What goes wrong


def refused(
    key: Key,
    message: bytes,
    says: str,
    error: type[WireError] = WireError,
    count: int = COUNT,
    context: bytes = RUN,
    least: int = 1,
    round: int = ROUND,
) -> None:
    with pytest.raises(error, match=says) as caught:
        read_by(key, message, count, context, least, round)
    assert type(caught.value) is error


def tampered(key: Key, message: bytes, count: int = COUNT, context: bytes = RUN, round: int = ROUND) -> None:
    """It is refused in the same words, whatever was done and wherever."""
    words = (
        "^encrypted message: it is not the sum of what its clients have encrypted, but was altered, or is of another"
        " context: stop, and make a new key$"
    )
    refused(key, message, words, TamperedError, count, context, round=round)


def test_another_key_is_refused_by_its_name_and_by_its_check_values(key: Key, uploads: list[bytes]) -> None:
    other = make_key(SCHEME)
    message = total_of(uploads)
    refused(other, message, "with another key")
    tampered(other, write(dataclasses.replace(sum_in(message), key=other.identifier)))
    theirs = encrypt(other, np.zeros(COUNT, np.int64), client=1, round=ROUND, context=RUN)
    with pytest.raises(WireError, match="client 1: encrypted message: it was encrypted with another key"):
        total_of([uploads[0], theirs])


def test_other_parameters_are_refused(uploads: list[bytes]) -> None:
    with pytest.raises(WireError, match="with other parameters"):
        total_of(uploads, Scheme.of(100))


def test_an_old_round_is_refused_and_cannot_be_passed_off_as_this_one(key: Key, uploads: list[bytes]) -> None:
    with pytest.raises(WireError, match="it is of round 7, but this is round 8"):
        add(enumerate(uploads), SCHEME, round=8, count=COUNT)
    forged = write(dataclasses.replace(sum_in(total_of(uploads)), round=8))
    tampered(key, forged, round=8)


def test_another_run_or_attempt_or_payload_is_refused(key: Key, uploads: list[bytes]) -> None:
    tampered(key, total_of(uploads), context=b"run 2")
    mixed = [uploads[0], *uploads_of(key, values_of(3, COUNT, SCHEME), b"run 2")[1:]]
    tampered(key, total_of(mixed))
    tampered(key, total_of(mixed), context=b"run 2")


def test_another_number_of_values_is_refused_and_cannot_be_passed_off(key: Key, uploads: list[bytes]) -> None:
    with pytest.raises(WireError, match="it has 1500 values where 1499 are due"):
        total_of(uploads, count=COUNT - 1)
    whole = sum_in(total_of(uploads))
    tampered(key, write(dataclasses.replace(whole, count=COUNT - 1)), count=COUNT - 1)
    seeds = b"".join(whole.seeds[k * 128 :][:64] for k in range(3))
    tampered(key, write(dataclasses.replace(whole, count=1022, first=whole.first[:1], seeds=seeds)), count=1022)


def test_too_many_participants_are_refused() -> None:
    tight = Scheme(1024, 20, 14)
    uploads = uploads_of(make_key(tight), np.zeros((tight.participants + 1, 5), np.int64))
    with pytest.raises(ArgumentError, match="can add from 1 to"):
        total_of(uploads, tight, 5)


def test_a_sum_of_too_few_is_not_read(key: Key, uploads: list[bytes]) -> None:
    refused(key, total_of(uploads[:1]), "a sum of 1 says too much of each: at least 2 are due", least=2)
    with pytest.raises(WireError, match="a sum of 1 says too much"):
        decrypt(key, total_of(uploads[:1]), round=ROUND, count=COUNT, context=RUN)
    refused(key, total_of(uploads), "a sum of 3 says too much", least=4)


def test_nobody_and_the_same_client_twice_and_another_clients_are_refused(uploads: list[bytes]) -> None:
    with pytest.raises(ArgumentError, match="can add from 1 to"):
        total_of([])
    with pytest.raises(WireError, match="client 0: it has already given its values"):
        add([(0, uploads[0]), (0, uploads[0])], SCHEME, round=ROUND, count=COUNT)
    with pytest.raises(WireError, match="client 1: the encrypted message says that client 0 sent it"):
        add([(1, uploads[0])], SCHEME, round=ROUND, count=COUNT)


def test_a_client_counted_twice_or_left_out_in_secret_is_found(key: Key, uploads: list[bytes]) -> None:
    as_another = write(dataclasses.replace(upload_in(uploads[0]), participants=(1,)))
    tampered(key, total_of([uploads[0], as_another]))
    two = sum_in(total_of(uploads[:2]))
    tampered(key, write(dataclasses.replace(two, participants=(0, 1, 2), seeds=two.seeds + bytes(2 * 64))))


@pytest.mark.parametrize("whole", [False, True])
def test_an_altered_ciphertext_is_found(whole: bool) -> None:
    scheme = Scheme.of(60)
    key = make_key(scheme)
    q = np.uint64(scheme.modulus)
    message = total_of(uploads_of(key, values_of(60, COUNT, scheme)), scheme, whole=whole)
    total = sum_in(message, scheme)
    assert total.kind == (Kind.WHOLE if whole else Kind.SEEDED)
    # A whole unit of the plaintext, added where an adversary who knows the parameters would add it.
    for block in (0, 1):
        shifted = total.first.copy()
        shifted[block, 0] = (shifted[block, 0] + np.uint64(scheme.modulus // scheme.plain_modulus)) % q
        tampered(key, write(dataclasses.replace(total, first=shifted)))
    if total.second is None:
        tampered(key, write(dataclasses.replace(total, seeds=bytes([total.seeds[0] ^ 1]) + total.seeds[1:])))
    else:
        second = total.second.copy()
        second[1, 5] = (second[1, 5] + np.uint64(1000)) % q
        tampered(key, write(dataclasses.replace(total, second=second)))
        tampered(key, write(dataclasses.replace(total, second=np.zeros_like(second) + np.uint64(1))))
    tampered(key, write(dataclasses.replace(total, first=total.first[::-1])))


@pytest.mark.parametrize("whole", [False, True])
def test_a_coefficient_beyond_the_modulus_is_refused(whole: bool) -> None:
    scheme = Scheme.of(60)
    key = make_key(scheme)
    total = sum_in(total_of(uploads_of(key, np.zeros((60, 3), np.int64)), scheme, 3, whole), scheme, 3)
    which = "second" if whole else "first"
    too_large = getattr(total, which).copy()
    too_large[0, 3] = scheme.modulus
    refused(
        key, write(dataclasses.replace(total, **{which: too_large})), "a coefficient is not below the modulus", count=3
    )


def test_an_upload_is_no_sum_and_a_sum_no_upload(key: Key, uploads: list[bytes]) -> None:
    refused(key, uploads[0], "it is of kind 1, and not seeded or whole")
    with pytest.raises(WireError, match="client 0: encrypted message: it is of kind 2, and not upload"):
        total_of([total_of(uploads)])


def test_participants_out_of_order_and_too_many_are_refused(key: Key, uploads: list[bytes]) -> None:
    total = sum_in(total_of(uploads))
    refused(key, write(dataclasses.replace(total, participants=(0, 2, 1))), "not in ascending order")
    for count in (0, SCHEME.participants + 1):
        many = dataclasses.replace(total, participants=tuple(range(count)))
        refused(key, write(many), f"it cannot be of {count} participants")


@pytest.mark.parametrize("kept", [0, 3, 31, 35, 36, 1000, -1])
def test_a_truncated_message_is_refused(key: Key, uploads: list[bytes], kept: int) -> None:
    refused(key, total_of(uploads)[:kept], "bytes")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_a_damaged_message_is_refused_or_gives_the_same_sum(
    key: Key, uploads: list[bytes], damage: list[tuple[float, int]]
) -> None:
    """A change that is smaller than the noise changes nothing that is decrypted."""
    message = total_of(uploads)
    changed = bytearray(message[:-4])
    for where, what in damage:
        changed[int(where * len(changed))] ^= what
    if changed != message[:-4]:
        with pytest.raises(WireError, match="encrypted message"):
            read_by(key, bytes(changed) + message[-4:])
    try:
        total = read_by(key, sealed_again(bytes(changed)))
    except WireError:
        return
    assert np.array_equal(total, values_of(3, COUNT, SCHEME).sum(axis=0))


@given(st.lists(st.integers(0, 2**36 - 1), max_size=50), st.sampled_from([36, 37, 54]))
def test_packed_words_come_back_in_the_fewest_bytes(words: list[int], bits: int) -> None:
    packed = pack(np.array(words, np.uint64), bits)
    assert len(packed) == -(-len(words) * bits // 8)
    assert unpack(packed, bits, len(words)).tolist() == words


def test_the_layout_is_as_documented(key: Key, uploads: list[bytes]) -> None:
    u = upload_in(uploads[2])
    body = b"FSE1" + bytes([1, 10, 26, 18]) + key.identifier + struct.pack("<IIII", ROUND, COUNT, 1, 2)
    for row, used in zip(u.first, (1024, COUNT - 1022 + 2), strict=True):
        number = sum(int(word) << (26 * i) for i, word in enumerate(row[:used]))
        body += number.to_bytes(-(-used * 26 // 8), "little")
    body += u.seeds
    assert uploads[2] == sealed_again(body)
    assert len(u.seeds) == 2 * 64
