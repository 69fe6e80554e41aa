"""The run directory: what it holds after each round, and what it refuses to go on from."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from fedsparsify.errors import CheckpointError, RunError
from fedsparsify.federation import RunDirectory
from fedsparsify.federation.checkpoint import States
from fedsparsify.layout import ParameterLayout
from fedsparsify.state import ModelState, ServerState
from fedsparsify.wire import Kind, Message, encode

LAYOUT = ParameterLayout.of(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
DIGEST = bytes(range(32))
INFO = {"rounds": 9, "name": "a run"}


def state(round: int) -> ServerState:
    rng = np.random.default_rng(round)
    mask = np.arange(LAYOUT.n) >= round
    w = np.where(mask, rng.normal(size=LAYOUT.n), 0).astype(np.float32)
    memory = {"momentum": rng.normal(size=LAYOUT.n).astype(np.float32)}
    return ServerState(round, ModelState(w, mask, rng.normal(size=LAYOUT.b).astype(np.float32)), memory)


def record(round: int) -> dict[str, Any]:
    return {"round": round, "accuracy": 0.5, "text": "line\u2028break"}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run directory with rounds 0 to 3, that nobody holds."""
    directory = RunDirectory.create(tmp_path / "run", "[run]\n", INFO, DIGEST)
    directory.expect(States(LAYOUT))
    for t in range(4):
        directory.round_done(state(t), record(t))
    directory.close()
    yield directory.path
    assert not list(directory.path.glob(".*.tmp"))


def reopened(path: Path, digest: bytes = DIGEST, layout: ParameterLayout = LAYOUT) -> ServerState | None:
    directory = RunDirectory.open(path, digest)
    try:
        directory.expect(States(layout))
        return directory.load()
    finally:
        directory.close()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def same(a: ServerState | None, b: ServerState) -> bool:
    return (
        a is not None
        and a.round == b.round
        and np.array_equal(a.model.w, b.model.w)
        and np.array_equal(a.model.mask, b.model.mask)
        and np.array_equal(a.model.buffers, b.model.buffers)
        and a.memory.keys() == b.memory.keys()
        and all(np.array_equal(a.memory[name], b.memory[name]) for name in a.memory)
    )


def test_all_that_the_server_knows_comes_back(run: Path) -> None:
    assert names(run) - {".lock"} == {"config.toml", "run.json", "metrics.jsonl", "checkpoint.fsp"}
    assert (run / "config.toml").read_text() == "[run]\n"
    assert json.loads((run / "run.json").read_text()) == INFO
    assert [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] == list(
        map(record, range(4))
    )
    assert same(reopened(run), state(3))


def test_the_final_model_is_written_as_a_whole(run: Path) -> None:
    directory = RunDirectory.open(run, DIGEST)
    directory.finish(b"the model")
    directory.close()
    assert (run / "model.fsp").read_bytes() == b"the model"
    assert not list(run.glob(".*.tmp"))


def test_a_record_without_its_checkpoint_is_dropped_and_made_again(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps(record(4)) + "\n")
    directory = RunDirectory.open(run, DIGEST)
    directory.expect(States(LAYOUT))
    assert same(directory.load(), state(3))
    directory.round_done(state(4), {**record(4), "accuracy": 0.6})
    directory.close()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[4]["accuracy"] == 0.6


def test_a_checkpoint_is_never_without_its_record(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[str] = []
    replace = os.replace

    def noted(source: Path, target: Path) -> None:
        replaced.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    directory = RunDirectory.open(run, DIGEST)
    directory.expect(States(LAYOUT))
    directory.load()
    directory.round_done(state(4), record(4))
    directory.close()
    assert replaced == ["metrics.jsonl", "checkpoint.fsp"]


@pytest.mark.parametrize("killed_after", ["nothing", "the first record"])
def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(killed_after: str, tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", "[run]\n", INFO, DIGEST).close()
    if killed_after == "the first record":
        (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(record(0)) + "\n")
    assert reopened(tmp_path / "run") is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def without_first_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_update(path: Path) -> None:
    path.write_bytes(DIGEST + encode(Message(Kind.MODEL, 3, state(3).model), LAYOUT))


DAMAGES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("checkpoint.fsp", cut, "checkpoint.fsp cannot be used"),
    ("checkpoint.fsp", lambda path: path.write_bytes(path.read_bytes()[:7]), "checkpoint.fsp is cut off after 7 bytes"),
    ("checkpoint.fsp", lambda path: path.write_bytes(b""), "checkpoint.fsp is cut off after 0 bytes"),
    ("checkpoint.fsp", lambda path: path.write_bytes(bytes(500)), "another configuration"),
    ("checkpoint.fsp", Path.unlink, "checkpoint.fsp is missing though rounds are recorded"),
    ("checkpoint.fsp", as_folder, "checkpoint.fsp cannot be read"),
    ("checkpoint.fsp", as_update, "a message of kind model where one of kind checkpoint is due"),
    ("metrics.jsonl", cut, "metrics.jsonl cannot be used"),
    ("metrics.jsonl", without_first_line, "line 1 is not of round 0"),
    ("metrics.jsonl", Path.unlink, "holds 0 of the 4 records up to the checkpoint of round 3"),
    ("metrics.jsonl", lambda path: path.write_text(json.dumps(record(0)) + "\n"), "holds 1 of the 4 records"),
    ("metrics.jsonl", lambda path: path.write_text("[]\n" * 4), "metrics.jsonl cannot be used"),
    ("metrics.jsonl", lambda path: path.write_bytes(b"\xff\xfe"), "metrics.jsonl cannot be used"),
    ("config.toml", Path.unlink, "is no run directory"),
]


@pytest.mark.parametrize(("name", "damage", "reason"), DAMAGES)
def test_a_damaged_directory_is_refused_and_left_alone(
    name: str, damage: Callable[[Path], Any], reason: str, run: Path
) -> None:
    damage(run / name)
    before = {path.name: path.is_file() and path.read_bytes() for path in run.iterdir()}
    with pytest.raises(RunError, match=reason):
        reopened(run)
    assert {path.name: path.is_file() and path.read_bytes() for path in run.iterdir()} == before


def test_a_checkpoint_of_other_settings_or_another_network_is_refused(run: Path) -> None:
    with pytest.raises(CheckpointError, match="another configuration than"):
        reopened(run, digest=bytes(32))
    with pytest.raises(CheckpointError, match="another network"):
        reopened(run, layout=ParameterLayout.of(nn.Linear(4, 3)))
    assert same(reopened(run), state(3))


def test_a_directory_is_held_by_one_at_a_time(run: Path) -> None:
    held = RunDirectory.open(run, DIGEST)
    with pytest.raises(RunError, match=r"already in use: another process is running it"):
        RunDirectory.open(run, DIGEST)
    held.close()
    RunDirectory.open(run, DIGEST).close()


def test_a_directory_whose_lock_cannot_be_made_is_refused(run: Path) -> None:
    (run / ".lock").unlink(missing_ok=True)
    (run / ".lock").mkdir()
    with pytest.raises(RunError, match="run cannot be written"):
        RunDirectory.open(run, DIGEST)


def test_leftovers_of_killed_writes_are_cleared_when_the_run_goes_on(run: Path) -> None:
    for name in (".metrics.jsonl.17.tmp", ".checkpoint.fsp.17.tmp", ".run.json.4.tmp", ".model.fsp.9.tmp"):
        (run / name).write_bytes(b"torn")
    (run / ".notes.tmp").write_bytes(b"the user's own")
    assert same(reopened(run), state(3))
    assert {name for name in names(run) if name.endswith(".tmp")} == {".notes.tmp"}
    (run / ".notes.tmp").unlink()


@pytest.mark.parametrize("taken", ["a file", "a run", "a folder of somebody's"])
def test_a_directory_in_use_is_refused_and_left_alone(taken: str, run: Path, tmp_path: Path) -> None:
    path = {"a file": tmp_path / "file", "a run": run, "a folder of somebody's": tmp_path / "folder"}[taken]
    if taken == "a file":
        path.write_text("content")
    elif taken != "a run":
        path.mkdir()
        (path / ".hidden").write_text("content")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunError, match=r"is already in use: choose another directory") as refusal:
        RunDirectory.create(path, "", INFO, DIGEST)
    assert ("go on with it by fedsparsify resume" in str(refusal.value)) == (taken == "a run")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("left", [(), (".lock",), (".lock", "run.json"), (".lock", "run.json", ".config.toml.7.tmp")])
def test_what_a_killed_creation_left_is_no_hindrance(left: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    for name in left:
        (path / name).write_bytes(b"")
    RunDirectory.create(path, "[run]\n", INFO, DIGEST).close()
    assert reopened(path) is None
    assert names(path) - {".lock"} == {"config.toml", "run.json"}


@pytest.mark.parametrize("parents", ["", "new/newer"])
@pytest.mark.parametrize(
    ("write", "error"),
    [(write, KeyboardInterrupt()) for write in (1, 2, 3, 4)]
    + [(write, OSError(errno.ENOSPC, "No space left on device")) for write in (1, 3)],
)
def test_a_creation_that_fails_leaves_nothing(
    write: int, parents: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, count = os.fsync, 0

    def failing(handle: int) -> None:
        nonlocal count
        count += 1
        if count == write:
            raise error
        sync(handle)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises((RunError, KeyboardInterrupt)):
        RunDirectory.create(tmp_path / parents / "run", "[run]\n", INFO, DIGEST)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    RunDirectory.create(tmp_path / parents / "run", "[run]\n", INFO, DIGEST).close()


def test_a_creation_that_fails_in_a_folder_that_was_there_leaves_it_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        RunDirectory.create(tmp_path, "[run]\n", INFO, DIGEST)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [1, 3])  # of the record, of the checkpoint
def test_a_full_disk_in_mid_run_keeps_the_round_before(write: int, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = RunDirectory.open(run, DIGEST)
    directory.expect(States(LAYOUT))
    directory.load()
    sync, count = os.fsync, 0

    def failing(handle: int) -> None:
        nonlocal count
        count += 1
        if count == write:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(RunError, match=r"No space left on device.*make room or mend the folder, then resume"):
        directory.round_done(state(4), record(4))
    directory.close()
    monkeypatch.undo()
    assert same(reopened(run), state(3))
