"""CKKS adds the same integers, shows alterations, and lets nothing but integers out."""

from __future__ import annotations

import random
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("tenseal")  # the extra "encryption"

from fedsparsify.errors import ArgumentError, TamperedError, WireError
from fedsparsify.secure import CIPHERS, CkksScheme, Key, Scheme, make_key

CKKS = CIPHERS["ckks"]
SCHEME = CkksScheme()
COUNT = 5000  # two ciphertexts
RUN = b"run 1"


@pytest.fixture(scope="module")
def key() -> Key:
    return CKKS.make_key(SCHEME)


def values_of(clients: int) -> NDArray[np.int64]:
    most = ((SCHEME.plain_modulus - 1) // 2) // clients
    return np.random.default_rng(clients).integers(-most, most + 1, (clients, COUNT))


def uploads_of(key: Key, values: NDArray[np.int64], round: int = 7) -> list[bytes]:
    return [CKKS.encrypt(key, own, client=k, round=round, context=RUN) for k, own in enumerate(values)]


def total_of(uploads: list[bytes], key: Key | None = None) -> bytes:
    adder = CKKS.adder(SCHEME, round=7, count=COUNT, key=key.identifier if key else None)
    for client, upload in enumerate(uploads):
        adder.take(client, upload)
    return adder.sum()


def read_by(key: Key, message: bytes, context: bytes = RUN, least: int = 2) -> NDArray[np.int64]:
    return CKKS.decrypt(key, message, round=7, count=COUNT, context=context, least=least)[0]


@pytest.fixture(scope="module")
def uploads(key: Key) -> list[bytes]:
    return uploads_of(key, values_of(3))


@pytest.mark.parametrize("clients", [2, 25, 100])
def test_the_sum_is_exact_as_integers(clients: int, key: Key) -> None:
    values = values_of(clients)
    total = total_of(uploads_of(key, values), key)
    assert read_by(key, total).dtype == np.int64
    assert np.array_equal(read_by(key, total), values.sum(0))


def test_it_takes_seventeen_times_the_bytes_of_bfv(key: Key, uploads: list[bytes]) -> None:
    bfv = CIPHERS["bfv"].encrypt(make_key(Scheme.of(3)), np.zeros(COUNT, np.int64), client=0, round=7, context=RUN)
    assert 15 < len(uploads[0]) * COUNT / (2 * SCHEME.values) / len(bfv) < 25


def test_another_key_context_or_round_is_refused(key: Key, uploads: list[bytes]) -> None:
    total = total_of(uploads)
    with pytest.raises(WireError, match="encrypted with another key"):
        read_by(CKKS.make_key(SCHEME), total)
    with pytest.raises(TamperedError):
        read_by(key, total, context=b"run 2")
    with pytest.raises(WireError, match="it is of round 8, but this is round 7"):
        total_of(uploads_of(key, values_of(2), round=8))
    with pytest.raises(ArgumentError, match="for another encryption than CKKS"):
        CKKS.encrypt(make_key(Scheme.of(3)), np.zeros(3, np.int64), client=0, round=7, context=RUN)
    with pytest.raises(ArgumentError, match="for another encryption than BFV"):
        CIPHERS["bfv"].encrypt(key, np.zeros(3, np.int64), client=0, round=7, context=RUN)


def sealed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def test_an_upload_that_is_repeated_or_left_out_is_found(key: Key, uploads: list[bytes]) -> None:
    with pytest.raises(WireError, match="client 0 sent it"):
        total_of([uploads[0], uploads[0]])
    adder = CKKS.adder(SCHEME, round=7, count=COUNT)
    adder.take(0, uploads[0])
    with pytest.raises(WireError, match="already"):
        adder.take(0, uploads[0])
    total = total_of(uploads[:2])
    lying = total[:20] + struct.pack("<I", 3) + struct.pack("<III", 0, 1, 2) + total[32:-4]
    with pytest.raises(TamperedError):
        read_by(key, sealed(lying))
    with pytest.raises(WireError, match="at least 2 are due"):
        read_by(key, total_of(uploads[:1]))
    with pytest.raises(ArgumentError, match="no message"):
        total_of([])


def test_a_server_that_adds_what_check_values_cannot_see_is_found(key: Key, uploads: list[bytes]) -> None:
    adder: Any = CKKS.adder(SCHEME, round=7, count=COUNT)
    for client, upload in enumerate(uploads):
        adder.take(client, upload)
    shift = [0.0] * (SCHEME.values + 2)
    shift[0], shift[1] = float(SCHEME.plain_modulus), -3.0 * SCHEME.plain_modulus  # nothing, modulo t
    adder._total[0] = adder._total[0] + shift
    with pytest.raises(TamperedError):
        read_by(key, adder.sum())


def test_values_that_do_not_fit_are_refused(key: Key) -> None:
    with pytest.raises(ArgumentError, match="between -8388606 and 8388606"):
        CKKS.encrypt(key, np.array([8_388_607]), client=0, round=7, context=RUN)


def test_damage_anywhere_is_refused(key: Key, uploads: list[bytes]) -> None:
    chance = random.Random(3)
    total = total_of(uploads)
    for size in [0, 3, 20, 30, 40, 200, len(total) // 2, len(total) - 1]:
        with pytest.raises(WireError):
            read_by(key, total[:size])
        with pytest.raises(WireError):
            read_by(key, sealed(total[:size]))
    found = 0
    for _ in range(40):
        damaged = bytearray(total[:-4])
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        with suppress(WireError):
            assert np.array_equal(read_by(key, sealed(bytes(damaged))), values_of(3).sum(0))
            found += 1  # a bit that means nothing: the same sum
    assert found <= 4
    with pytest.raises(WireError):
        total_of([sealed(uploads[0][:-4][:60] + bytes(len(uploads[0]) - 64))])


def test_a_key_file_comes_back(key: Key, tmp_path: Path, uploads: list[bytes]) -> None:
    key.save(tmp_path / "ckks.key")
    again = Key.load(tmp_path / "ckks.key")
    assert again == key and again.identifier == key.identifier
    assert np.array_equal(read_by(again, total_of(uploads)), values_of(3).sum(0))


def inner(
    vector: bytes, sizes: bytes = bytes.fromhex("0a028020"), ciphertexts: int = 1, scale: float = 2.0**40
) -> bytes:
    """A vector of TenSEAL's with something else around its ciphertext, in a sealed message for 4,000 values."""
    ciphertext = vector[4:-9]
    made = sizes + ciphertexts * ciphertext + b"\x19" + struct.pack("<d", scale)
    head = struct.pack("<4s8sIII", b"FSC1", bytes(8), 7, 4000, 1) + struct.pack("<I", 0)
    return sealed(head + struct.pack("<I", len(made)) + made)


@pytest.mark.parametrize(
    "other",
    [
        {"ciphertexts": 0},
        {"ciphertexts": 2},
        {"sizes": bytes.fromhex("0a02a01f")},
        {"sizes": bytes.fromhex("0a0380200a")},
        {"sizes": bytes.fromhex("0a04a01f8020")},
        {"sizes": b""},
        {"scale": 0.0},
        {"scale": float("nan")},
        {"scale": 2.0**41},
    ],
    ids=str,
)
def test_a_vector_of_another_form_is_refused_before_the_library_adds_it(other: dict[str, Any], key: Key) -> None:
    upload = CKKS.encrypt(key, np.zeros(4000, np.int64), client=0, round=7, context=RUN)
    vector = upload[32:-4]
    adder = CKKS.adder(SCHEME, round=7, count=4000)
    with pytest.raises(WireError):
        adder.take(0, inner(vector, **other))
    adder.take(0, inner(vector))
    with pytest.raises(WireError, match="already"):
        adder.take(0, inner(vector))
