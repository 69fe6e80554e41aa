"""Encrypted runs from settings: the same bits with any key, number of workers and interruption, and at sites."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tenseal")  # the extra "encryption"

from fedsparsify import runs, site_worker
from fedsparsify.config import load_settings
from fedsparsify.experiment import prepare
from fedsparsify.federation import Reply
from fedsparsify.layout import ParameterLayout
from fedsparsify.sparse import Calibration, available
from fedsparsify.state import Floats
from tests.commands import CONFIG, call, contents, records, write_config
from tests.federation.expected import without_time

ENCRYPTED = CONFIG.replace("clients = 4", "clients = 4\nmin_clients = 2") + '\n[encryption]\nscheme = "bfv"\n'
METHODS = ["fedsparsify-global", "fedsparsify-local"]
every_method = pytest.mark.parametrize("method", METHODS)


def config_of(folder: Path, method: str, **others: object) -> Path:
    text = ENCRYPTED.replace("fedsparsify-global", method)
    for key, value in others.items():
        text = text.replace(f"{key} = 1\n", f"{key} = {value}\n")
    return write_config(folder, text)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each method that nobody disturbed."""
    found = {}
    for method in METHODS:
        folder = tmp_path_factory.mktemp("reference")
        outcome = call("run", config_of(folder, method), "--out", folder / "run", "--no-report")
        assert outcome.code == 0, outcome.err
        found[method] = folder / "run"
    return found


def assert_same(run: Path, other: Path) -> None:
    assert (run / "model.fsp").read_bytes() == (other / "model.fsp").read_bytes()
    assert without_time(records(run)) == without_time(records(other))


@every_method
@pytest.mark.parametrize("workers", [1, 2])
def test_neither_the_key_nor_the_number_of_workers_changes_a_bit(
    method: str, workers: int, reference: dict[str, Path], tmp_path: Path
) -> None:
    config = config_of(tmp_path, method, workers=workers)
    assert call("run", config, "--out", tmp_path / "run", "--no-report").code == 0
    ours, theirs = ((run / "clients.key").read_bytes() for run in (tmp_path / "run", reference[method]))
    assert ours != theirs
    assert_same(tmp_path / "run", reference[method])


def test_a_simulations_key_is_its_owners_alone(reference: dict[str, Path]) -> None:
    assert stat.S_IMODE((reference["fedsparsify-global"] / "clients.key").stat().st_mode) == 0o600


def test_a_key_may_be_named(reference: dict[str, Path], tmp_path: Path) -> None:
    key = tmp_path / "mine.key"
    assert call("keys", "new", key, "--participants", "4").code == 0
    config = config_of(tmp_path, "fedsparsify-global")
    assert call("run", config, "--out", tmp_path / "run", "--no-report", "--set", f'encryption.key="{key}"').code == 0
    assert not (tmp_path / "run" / "clients.key").exists()
    assert_same(tmp_path / "run", reference["fedsparsify-global"])


class _Killed(BaseException):
    pass


class _After:
    def __init__(self, round: int) -> None:
        self._round = round

    def client_done(self, round: int, done: int, total: int) -> None: ...

    def round_done(self, state: Any, record: dict[str, Any]) -> None:
        if record["round"] == self._round:
            raise _Killed


@every_method
@pytest.mark.parametrize("last", [0, 2])
def test_a_resumed_run_gives_the_same_bits(method: str, last: int, reference: dict[str, Path], tmp_path: Path) -> None:
    settings = load_settings(config_of(tmp_path, method))
    with pytest.raises(_Killed):
        runs.start(prepare(settings, "here"), tmp_path / "run", [_After(last)])
    assert len(records(tmp_path / "run")) == last + 1
    assert call("resume", tmp_path / "run", "--no-report").code == 0
    assert (tmp_path / "run" / "model.fsp").read_bytes() == (reference[method] / "model.fsp").read_bytes()


def test_a_run_that_was_killed_before_its_key_was_written_makes_one(reference: dict[str, Path], tmp_path: Path) -> None:
    settings = load_settings(config_of(tmp_path, "fedsparsify-global"))
    with pytest.raises(_Killed):
        runs.start(prepare(settings, "here"), tmp_path / "run", [_After(0)])
    for name in ("clients.key", "metrics.jsonl", "checkpoint.fsp"):
        (tmp_path / "run" / name).unlink()
    assert call("resume", tmp_path / "run", "--no-report").code == 0
    assert_same(tmp_path / "run", reference["fedsparsify-global"])


def test_a_lost_key_and_a_damaged_checkpoint_are_named_and_nothing_is_lost(tmp_path: Path) -> None:
    settings = load_settings(config_of(tmp_path, "fedsparsify-global"))
    run = tmp_path / "run"
    with pytest.raises(_Killed):
        runs.start(prepare(settings, "here"), run, [_After(1)])
    key = (run / "clients.key").read_bytes()
    (run / "clients.key").unlink()
    before = contents(run)
    outcome = call("resume", run, "--no-report")
    assert outcome.code == 2 and "clients.key is missing, the key of this simulation" in outcome.err
    assert contents(run) == before
    with os.fdopen(os.open(run / "clients.key", os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        file.write(key)
    kept = (run / "checkpoint.fsp").read_bytes()
    (run / "checkpoint.fsp").write_bytes(kept[:-9])
    outcome = call("resume", run, "--no-report")
    assert outcome.code == 2 and "checkpoint.fsp cannot be used" in outcome.err and "restore it" in outcome.err
    (run / "checkpoint.fsp").write_bytes(kept)
    assert call("resume", run, "--no-report").code == 0


class _Sites:
    """Workers as sites have them, within this process."""

    def __init__(self, folder: Path, key: Path, calibration: Calibration | None) -> None:
        facts = {"folder": str(folder), "settings": "tiny.toml", "set": [], "data-dir": "", "key": str(key)}
        self._workers = [site_worker._Worker(facts) for _ in range(4)]
        self._calibration = "" if calibration is None else json.dumps(asdict(calibration))

    def exchange(self, round: int, broadcasts: Mapping[int, bytes]) -> Iterator[Reply]:
        for k, payload in broadcasts.items():
            task = {"client": k, "round": round, "calibration": self._calibration}
            answer = self._workers[k].answer(json.dumps(task).encode() + b"\n" + payload)
            yield Reply(k, answer[1:]) if answer[:1] == b"\x00" else Reply(k, None, answer[1:].decode())

    def carried(self) -> Mapping[str, Floats]:
        return {}

    def restore(self, carried: Mapping[str, Floats]) -> None: ...


@every_method
@pytest.mark.skipif(not available(), reason="as the simulator without a compiler")
def test_sites_with_a_key_give_the_simulators_records_and_a_model_that_only_the_key_opens(
    method: str, reference: dict[str, Path], tmp_path: Path
) -> None:
    key = tmp_path / "clients.key"
    assert call("keys", "new", key, "--participants", "4").code == 0
    settings = load_settings(config_of(tmp_path, method))

    def connect(layout: ParameterLayout, calibration: Calibration | None) -> _Sites:
        return _Sites(tmp_path, key, calibration)

    run = tmp_path / "run"
    runs.start(prepare(settings, "here", deployed=True), run, [], connect)
    assert without_time(records(run)) == without_time(records(reference[method]))
    assert not (run / "model.fsp").exists() and not (run / "clients.key").exists()
    assert call("keys", "new", tmp_path / "other.key", "--participants", "4").code == 0
    outcome = call("keys", "open", run, "--key", tmp_path / "other.key")
    assert outcome.code == 2 and "model.locked cannot be opened with" in outcome.err and "another key" in outcome.err
    outcome = call("keys", "open", run, "--key", key)
    assert outcome.code == 0, outcome.err
    assert (run / "model.fsp").read_bytes() == (reference[method] / "model.fsp").read_bytes()


def test_a_site_without_a_key_says_so(tmp_path: Path) -> None:
    settings = load_settings(config_of(tmp_path, "fedsparsify-global"))
    nowhere = _Sites(tmp_path, Path(""), None)
    nowhere._workers[0]._facts["key"] = ""
    outcome = list(nowhere.exchange(0, {0: b""}))
    assert settings.encrypts
    assert "this site has no key: say where it is in site.conf (KEY)" in outcome[0].failure


@pytest.mark.skipif(not available(), reason="as the simulator without a compiler")
def test_a_sites_process_serves_another_run_with_another_key(reference: dict[str, Path], tmp_path: Path) -> None:
    key = tmp_path / "clients.key"
    settings = load_settings(config_of(tmp_path, "fedsparsify-global"))
    sites: list[_Sites] = []

    def connect(layout: ParameterLayout, calibration: Calibration | None) -> _Sites:
        sites[:] = sites or [_Sites(tmp_path, key, calibration)]
        return sites[0]

    for name in ("first", "second"):
        key.unlink(missing_ok=True)
        assert call("keys", "new", key, "--participants", "4").code == 0
        runs.start(prepare(settings, "here", deployed=True), tmp_path / name, [], connect)
        assert without_time(records(tmp_path / name)) == without_time(records(reference["fedsparsify-global"]))
        assert call("keys", "open", tmp_path / name, "--key", key).code == 0


def test_a_site_with_a_key_does_not_train_in_the_clear(tmp_path: Path) -> None:
    key = tmp_path / "clients.key"
    assert call("keys", "new", key, "--participants", "4").code == 0
    config_of(tmp_path, "fedsparsify-global")
    sites = _Sites(tmp_path, key, None)
    sites._workers[0]._facts["set"] = ["encryption.scheme=none"]
    (reply,) = sites.exchange(0, {0: b""})
    assert reply.payload is None and "this site has a key, but the settings do not encrypt" in reply.failure


def test_a_finished_run_is_left_as_it_is_and_another_key_is_refused(tmp_path: Path) -> None:
    config, run = config_of(tmp_path, "fedsparsify-global"), tmp_path / "run"
    settings = load_settings(config)
    with pytest.raises(_Killed):
        runs.start(prepare(settings, "here"), run, [_After(1)])
    own = (run / "clients.key").rename(tmp_path / "own.key")
    assert call("keys", "new", run / "clients.key", "--participants", "4").code == 0
    outcome = call("resume", run, "--no-report")
    assert outcome.code == 2 and "is not the key that" in outcome.err and "restore that one" in outcome.err
    own.rename(run / "clients.key")
    assert call("resume", run, "--no-report").code == 0
    (run / "clients.key").unlink()
    before = contents(run)
    assert call("resume", run, "--no-report").code == 0
    assert contents(run) == before


def test_a_key_named_by_a_relative_path_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    assert call("keys", "new", "mine.key", "--participants", "4").code == 0
    settings = load_settings(config_of(tmp_path, "fedsparsify-global"), ['encryption.key="mine.key"'])
    with pytest.raises(_Killed):
        runs.start(prepare(settings, "here"), tmp_path / "run", [_After(1)])
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert call("resume", tmp_path / "run", "--no-report").code == 0


def test_inspect_says_what_a_checkpoint_of_an_encrypted_run_holds(reference: dict[str, Path], tmp_path: Path) -> None:
    path = reference["fedsparsify-global"] / "checkpoint.fsp"
    outcome = call("inspect", path)
    assert outcome.code == 0, outcome.err
    assert "round 3 of an encrypted run" in outcome.out and "69 parameters left" in outcome.out
    assert "Only that key opens the model" in outcome.out
    (tmp_path / "cut.fsp").write_bytes(path.read_bytes()[:-7])
    outcome = call("inspect", tmp_path / "cut.fsp")
    assert outcome.code == 2 and "cut.fsp cannot be explained" in outcome.err
