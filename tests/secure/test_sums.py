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

from fedsparsify.errors import ArgumentError, WireError
from fedsparsify.secure import Key, Scheme, Sum, Upload, add, decrypt, encrypt, expand, make_key
from fedsparsify.secure.messages import pack, read_sum, read_upload, unpack, write
from fedsparsify.secure.sealing import _Seal

SCHEME = Scheme.of(3)
COUNT = 1500  # two ciphertexts
ROUND = 7


@pytest.fixture(scope="module")
def key() -> Key:
    return make_key(SCHEME)


def values_of(clients: int, count: int, scheme: Scheme, seed: int = 1) -> NDArray[np.int64]:
    most = ((scheme.plain_modulus - 1) // 2) // clients
    return np.random.default_rng(seed).integers(-most, most + 1, (clients, count))


def uploads_of(key: Key, values: NDArray[np.int64], round: int = ROUND) -> list[bytes]:
    return [encrypt(key, own, client=k, round=round) for k, own in enumerate(values)]


@pytest.fixture(scope="module")
def uploads(key: Key) -> list[bytes]:
    return uploads_of(key, values_of(3, COUNT, SCHEME))


def sealed_again(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


@pytest.mark.parametrize("clients", [1, 2, 10, 25, 100, 110])
def test_the_sum_is_that_of_the_integers(clients: int) -> None:
    scheme = Scheme.of(clients)
    key = make_key(scheme)
    values = values_of(clients, 100, scheme)
    uploads = uploads_of(key, values)
    for message in (
        add(uploads, scheme, round=ROUND, count=100),
        add(reversed(uploads), scheme, round=ROUND, count=100, expand=expand),
    ):
        total, who = decrypt(key, message, round=ROUND, count=100)
        assert np.array_equal(total, values.sum(axis=0))
        assert who == tuple(range(clients))


@pytest.mark.parametrize("count", [0, 1, 1021, 1022, 1023, 5000])
def test_any_number_of_values_is_carried(key: Key, count: int) -> None:
    values = values_of(2, count, SCHEME)
    message = add(uploads_of(key, values), SCHEME, round=ROUND, count=count)
    assert np.array_equal(decrypt(key, message, round=ROUND, count=count)[0], values.sum(axis=0))


def test_the_largest_sums_are_exact(key: Key) -> None:
    most = (SCHEME.plain_modulus - 1) // 2
    values = np.array([[most, -most, 0, most - 1], [0, 0, 0, 1]])
    message = add(uploads_of(key, values), SCHEME, round=ROUND, count=4)
    assert decrypt(key, message, round=ROUND, count=4)[0].tolist() == [most, -most, 0, most]


def test_a_value_that_does_not_fit_is_refused(key: Key) -> None:
    most = (SCHEME.plain_modulus - 1) // 2
    for value in (most + 1, -most - 1):
        with pytest.raises(ArgumentError, match=f"more than {most}, the largest that fits"):
            encrypt(key, np.array([0, value]), client=0, round=ROUND)


def test_a_dense_model_costs_what_the_parameters_say(key: Key) -> None:
    count = 100 * SCHEME.values
    values = values_of(10, count, SCHEME)
    uploads = uploads_of(key, values)
    message = add(uploads, SCHEME, round=ROUND, count=count)
    assert len(uploads[0]) / count < 3.35
    assert len(message) / count < 3.95


def test_many_participants_seeds_give_way_to_their_polynomials() -> None:
    scheme = Scheme.of(100)
    uploads = uploads_of(make_key(scheme), values_of(100, 1000, scheme))
    forwarded = add(uploads, scheme, round=ROUND, count=1000)
    expanded = add(uploads, scheme, round=ROUND, count=1000, expand=expand)
    assert len(expanded) < 0.75 * len(forwarded)
    assert len(expanded) / 1022 < 7.4


def test_two_encryptions_of_the_same_have_nothing_in_common(key: Key) -> None:
    zeros = np.zeros(1022, np.int64)
    a, b = (read_upload(encrypt(key, zeros, client=0, round=ROUND), SCHEME, None, ROUND, 1022) for _ in range(2))
    assert a.seeds != b.seeds
    assert np.count_nonzero(a.first == b.first) < 5
    # As a uniform number would: what is encrypted does not show.
    assert abs(float(a.first.mean()) / SCHEME.modulus - 0.5) < 0.05


def test_the_library_has_the_primes_that_the_server_adds_modulo() -> None:
    for scheme in (Scheme(), Scheme(1024, 27, 18), Scheme(2048, 36, 24), Scheme(2048, 54, 20)):
        assert _Seal(scheme).context.parameters_set()


# What goes wrong


def refused(key: Key, message: bytes, says: str, round: int = ROUND, count: int = COUNT) -> None:
    with pytest.raises(WireError, match=says):
        decrypt(key, message, round=round, count=count)


def test_another_key_is_refused_by_its_name_and_by_its_check_values(key: Key, uploads: list[bytes]) -> None:
    other = make_key(SCHEME)
    total = read_sum(add(uploads, SCHEME, round=ROUND, count=COUNT), SCHEME, key.identifier, ROUND, COUNT)
    refused(other, write(total), "with another key")
    refused(other, write(dataclasses.replace(total, key=other.identifier)), "ciphertext 0 is not the sum")
    with pytest.raises(WireError, match="upload 1: encrypted message: it was encrypted with another key"):
        add(
            [uploads[0], encrypt(other, np.zeros(COUNT, np.int64), client=1, round=ROUND)],
            SCHEME,
            round=ROUND,
            count=COUNT,
        )


def test_other_parameters_are_refused(key: Key, uploads: list[bytes]) -> None:
    with pytest.raises(WireError, match="with other parameters"):
        add(uploads, Scheme.of(100), round=ROUND, count=COUNT)


def test_an_old_round_is_refused_and_cannot_be_passed_off_as_this_one(key: Key, uploads: list[bytes]) -> None:
    with pytest.raises(WireError, match="it is of round 7, but this is round 8"):
        add(uploads, SCHEME, round=8, count=COUNT)
    forged = [write(dataclasses.replace(read_upload(u, SCHEME, None, ROUND, COUNT), round=8)) for u in uploads]
    refused(key, add(forged, SCHEME, round=8, count=COUNT), "is not the sum", round=8)


def test_another_number_of_values_is_refused(key: Key, uploads: list[bytes]) -> None:
    with pytest.raises(WireError, match="it has 1500 values where 1499 are due"):
        add(uploads, SCHEME, round=ROUND, count=COUNT - 1)
    total = read_sum(add(uploads, SCHEME, round=ROUND, count=COUNT), SCHEME, key.identifier, ROUND, COUNT)
    refused(key, write(dataclasses.replace(total, count=COUNT - 1)), "values behind the last", count=COUNT - 1)


def test_too_many_participants_are_refused(uploads: list[bytes]) -> None:
    tight = Scheme(1024, 20, 14)
    key = make_key(tight)
    uploads = uploads_of(key, np.zeros((tight.participants + 1, 5), np.int64))
    with pytest.raises(ArgumentError, match="can add from 1 to"):
        add(uploads, tight, round=ROUND, count=5)


def test_nobody_and_the_same_client_twice_are_refused(uploads: list[bytes]) -> None:
    with pytest.raises(ArgumentError, match="can add from 1 to"):
        add([], SCHEME, round=ROUND, count=COUNT)
    with pytest.raises(WireError, match="upload 1: client 0 has already given its values"):
        add([uploads[0], uploads[0]], SCHEME, round=ROUND, count=COUNT)


def test_a_client_counted_twice_or_left_out_in_secret_is_found(key: Key, uploads: list[bytes]) -> None:
    as_another = write(dataclasses.replace(read_upload(uploads[0], SCHEME, None, ROUND, COUNT), participants=(1,)))
    refused(key, add([uploads[0], as_another], SCHEME, round=ROUND, count=COUNT), "is not the sum")
    two = read_sum(add(uploads[:2], SCHEME, round=ROUND, count=COUNT), SCHEME, key.identifier, ROUND, COUNT)
    claimed = dataclasses.replace(two, participants=(0, 1, 2), seeds=two.seeds + bytes(2 * 64))
    refused(key, write(claimed), "is not the sum")


def test_an_altered_ciphertext_is_found(key: Key, uploads: list[bytes]) -> None:
    total = read_sum(add(uploads, SCHEME, round=ROUND, count=COUNT), SCHEME, key.identifier, ROUND, COUNT)
    shifted = total.first.copy()
    # A whole unit of the plaintext, added where an adversary who knows the parameters would add it.
    shifted[1, 0] = (shifted[1, 0] + np.uint64(SCHEME.modulus // SCHEME.plain_modulus)) % np.uint64(SCHEME.modulus)
    refused(key, write(dataclasses.replace(total, first=shifted)), "ciphertext 1 is not the sum")
    other_seed = bytes([total.seeds[0] ^ 1]) + total.seeds[1:]
    refused(key, write(dataclasses.replace(total, seeds=other_seed)), "ciphertext 0 is not the sum")
    swapped = dataclasses.replace(total, first=total.first[::-1], seeds=total.seeds)
    refused(key, write(swapped), "is not the sum")


def test_a_coefficient_beyond_the_modulus_is_refused(key: Key, uploads: list[bytes]) -> None:
    upload = read_upload(uploads[0], SCHEME, None, ROUND, COUNT)
    too_large = upload.first.copy()
    too_large[0, 0] = SCHEME.modulus
    with pytest.raises(WireError, match="a coefficient is not below the modulus"):
        add([write(dataclasses.replace(upload, first=too_large))], SCHEME, round=ROUND, count=COUNT)


def test_an_upload_is_no_sum_and_a_sum_no_upload(key: Key, uploads: list[bytes]) -> None:
    refused(key, uploads[0], "a sum was expected")
    with pytest.raises(WireError, match="an upload was expected"):
        add([add(uploads, SCHEME, round=ROUND, count=COUNT)], SCHEME, round=ROUND, count=COUNT)


def test_participants_out_of_order_and_too_many_are_refused(key: Key, uploads: list[bytes]) -> None:
    total = read_sum(add(uploads, SCHEME, round=ROUND, count=COUNT), SCHEME, key.identifier, ROUND, COUNT)
    refused(key, write(dataclasses.replace(total, participants=(0, 2, 1))), "not in ascending order")
    many = dataclasses.replace(total, participants=tuple(range(SCHEME.participants + 1)))
    refused(key, write(many), "it cannot be of 28 participants")
    refused(key, write(dataclasses.replace(total, participants=())), "it cannot be of 0 participants")


@pytest.mark.parametrize("kept", [0, 3, 31, 35, 36, 1000, -1])
def test_a_truncated_message_is_refused(key: Key, uploads: list[bytes], kept: int) -> None:
    message = add(uploads, SCHEME, round=ROUND, count=COUNT)
    refused(key, message[:kept], "bytes")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_a_damaged_message_is_refused_or_gives_the_same_sum(
    key: Key, uploads: list[bytes], damage: list[tuple[float, int]]
) -> None:
    """A change that is smaller than the noise changes nothing that is decrypted."""
    message = add(uploads, SCHEME, round=ROUND, count=COUNT)
    changed = bytearray(message[:-4])
    for where, what in damage:
        changed[int(where * len(changed))] ^= what
    if changed != message[:-4]:
        refused(key, bytes(changed) + message[-4:], "encrypted message")
    try:
        total, who = decrypt(key, sealed_again(bytes(changed)), round=ROUND, count=COUNT)
    except WireError:
        return
    assert np.array_equal(total, values_of(3, COUNT, SCHEME).sum(axis=0))
    assert who == (0, 1, 2)


@given(st.lists(st.integers(0, 2**36 - 1), max_size=50), st.sampled_from([36, 37, 54]))
def test_packed_words_come_back_in_the_fewest_bytes(words: list[int], bits: int) -> None:
    packed = pack(np.array(words, np.uint64), bits)
    assert len(packed) == -(-len(words) * bits // 8)
    assert unpack(packed, bits, len(words)).tolist() == words


def test_the_layout_is_as_documented(key: Key, uploads: list[bytes]) -> None:
    u = read_upload(uploads[2], SCHEME, key.identifier, ROUND, COUNT)
    assert isinstance(u, Upload) and isinstance(u, Sum)
    body = b"FSE1" + bytes([1, 10, 26, 18]) + key.identifier + struct.pack("<IIII", ROUND, COUNT, 1, 2)
    number = sum(int(word) << (26 * i) for i, word in enumerate(u.first.ravel()))
    body += number.to_bytes(2 * 1024 * 26 // 8, "little") + u.seeds
    assert uploads[2] == sealed_again(body)
    assert len(u.seeds) == 2 * 64
