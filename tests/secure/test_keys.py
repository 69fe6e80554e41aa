"""Key files: for the owner only, never overwritten, and refused where anything about them is wrong."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tenseal")  # the extra "encryption"

from fedsparsify.errors import ArgumentError, DataError
from fedsparsify.secure import Key, Scheme, add, decrypt, encrypt, make_key

SCHEME = Scheme()


@pytest.fixture(scope="module")
def key() -> Key:
    return make_key(SCHEME)


def test_a_key_from_its_file_decrypts_what_the_first_one_encrypted(key: Key, tmp_path: Path) -> None:
    path = tmp_path / "clients.key"
    key.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    again = Key.load(path)
    assert again == key
    values = np.arange(-5, 6)
    upload = encrypt(key, values, client=0, round=1, context=b"run")
    message = add([(0, upload)], SCHEME, round=1, count=11)
    assert decrypt(again, message, round=1, count=11, context=b"run", least=1)[0].tolist() == values.tolist()


def test_two_keys_differ_in_every_part(key: Key) -> None:
    other = make_key(SCHEME)
    assert other.identifier != key.identifier
    assert other.secret != key.secret
    assert other.checking != key.checking


def test_a_key_shows_nothing_of_itself_in_a_log(key: Key) -> None:
    for text in (repr(key), str(key), f"{key}", repr([key])):
        assert key.identifier.hex() in text
        assert repr(key.checking)[2:20] not in text and key.checking.hex() not in text
        assert "secret" not in text


def test_a_key_file_is_never_overwritten(key: Key, tmp_path: Path) -> None:
    path = tmp_path / "clients.key"
    key.save(path)
    before = path.read_bytes()
    with pytest.raises(ArgumentError, match="a key is never overwritten"):
        make_key(SCHEME).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["clients.key"]
    with pytest.raises(ArgumentError, match="cannot be written"):
        key.save(tmp_path / "no folder" / "clients.key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(key: Key, tmp_path: Path, mode: int) -> None:
    path = tmp_path / "clients.key"
    key.save(path)
    os.chmod(path, mode)
    with pytest.raises(DataError, match=r"clients.key can be read by others than its owner: chmod 600"):
        Key.load(path)


def resealed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: b"", "is no key of FedSparsify's"),
        (lambda data: b"PEM" + data[3:], "is no key of FedSparsify's"),
        (lambda data: data[:-1], "cut off or too long"),
        (lambda data: data + b"\0", "cut off or too long"),
        (lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:], "the key is damaged"),
        (lambda data: data[:4] + bytes([9]) + data[5:], "ring = 512 must be one of"),
        (lambda data: data[:4] + bytes([200]) + data[5:], "ring = 0 must be one of"),
        (lambda data: resealed(data[:40] + b"\xff" * (len(data) - 72)), "of no use with its own parameters"),
    ],
)
def test_a_file_that_is_no_sound_key_is_refused(key: Key, tmp_path: Path, change: object, says: str) -> None:
    path = tmp_path / "clients.key"
    key.save(path)
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=says):
        Key.load(path)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.key: the key cannot be read"):
        Key.load(tmp_path / "none.key")
