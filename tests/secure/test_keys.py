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


def test_a_refused_key_is_not_read_but_the_next_one_in_its_place_is(key: Key, tmp_path: Path) -> None:
    path = tmp_path / "clients.key"
    key.save(path)
    key.retire(path)
    with pytest.raises(DataError, match=r"a sum was refused \(clients\.key\.refused says so\)"):
        Key.load(path)
    assert Key.load(path, retired=True) == key  # to open a model
    path.unlink()
    other = make_key(SCHEME)
    other.save(path)
    assert Key.load(path) == other
    other.retire(path)
    for again in (key, other):
        path.unlink()
        again.save(path)
        with pytest.raises(DataError, match="must not be used again"):
            Key.load(path)


def test_a_killed_processs_leftover_is_in_nobodys_way(key: Key, tmp_path: Path) -> None:
    path = tmp_path / "clients.key"
    (tmp_path / f".clients.key.{os.getpid()}.tmp").write_bytes(b"half a key")
    key.save(path)
    assert Key.load(path) == key
    assert [file.name for file in tmp_path.iterdir()] == ["clients.key"]


@pytest.mark.parametrize("place", [".", "/", "clients.key/another.key"])
def test_a_place_where_no_file_can_be_is_named(
    key: Key, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    key.save(Path("clients.key"))
    with pytest.raises(ArgumentError, match=f"^{place} cannot be written"):
        key.save(Path(place))


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.key: the key cannot be read"):
        Key.load(tmp_path / "none.key")
