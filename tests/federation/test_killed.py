"""A run that is killed or stopped at any moment goes on to the same bits, and never leaves a torn file."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from fedsparsify.layout import ParameterLayout
from fedsparsify.models import build
from fedsparsify.sparse import available
from fedsparsify.wire import decode
from tests.commands import CONFIG, Launcher, alive, call, children, records, wait_until, write_config

Uninterrupted = Callable[[str], Path]

BACKENDS = ["torch", pytest.param("native", marks=pytest.mark.skipif(not available(), reason="no compiled trainer"))]


ROUNDS = 100
"""More than the kills let pass, on a busy machine too."""


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with Launcher(tmp_path_factory.mktemp("launcher")) as launcher:
        yield launcher


@pytest.fixture(scope="module")
def uninterrupted(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """Return a function: backend -> the directory of a run of ``ROUNDS`` that nobody disturbed."""

    @cache
    def run(backend: str) -> Path:
        folder = tmp_path_factory.mktemp("uninterrupted")
        code, printed = launcher.run("run", config_of(folder, ROUNDS, backend=backend), "--out", folder / "run")
        assert code == 0, printed
        return folder / "run"

    return run


def config_of(folder: Path, rounds: int, workers: int = 2, backend: str = "torch") -> Path:
    text = CONFIG.replace("rounds = 3", f"rounds = {rounds}").replace("workers = 1", f"workers = {workers}")
    return write_config(folder, text.replace('backend = "torch"', f'backend = "{backend}"'))


def last_round(run: Path) -> int:
    """The last recorded round of a run that may be going on."""
    return (run / "metrics.jsonl").read_bytes().count(b"\n") - 1 if (run / "metrics.jsonl").exists() else -1


def check(run: Path) -> int:
    """Check that a run that stands still has no torn file, and return its last recorded round."""
    if not (run / "config.toml").exists():
        return -1
    assert tomllib.loads((run / "config.toml").read_text())["model"]["hidden"]
    assert json.loads((run / "run.json").read_text())["layers"]
    recorded = -1
    if (run / "metrics.jsonl").exists():
        rounds = [record["round"] for record in records(run)]
        assert rounds == list(range(len(rounds)))
        recorded = rounds[-1]
    if (run / "checkpoint.fsp").exists():
        layout = ParameterLayout.of(build("2-fc", 1, inputs=64, hidden=8))
        kept = decode((run / "checkpoint.fsp").read_bytes()[32:], layout).round
        assert recorded - 1 <= kept <= recorded, "a checkpoint comes right after its record"
    else:
        assert recorded <= 0
    return recorded


def assert_same_run(run: Path, reference: Path) -> None:
    assert (run / "model.fsp").read_bytes() == (reference / "model.fsp").read_bytes()
    assert (run / "checkpoint.fsp").read_bytes() == (reference / "checkpoint.fsp").read_bytes()
    assert records(run, resumed=True) == records(reference, resumed=True)
    assert not list(run.glob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_twenty_kills_at_random_moments_change_no_bit(
    backend: str, launcher: Launcher, uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    chance = random.Random(20)
    config = config_of(tmp_path, ROUNDS, backend=backend)
    reference, run = uninterrupted(backend), tmp_path / "killed"
    a_round = sum(record["seconds_round"] for record in records(reference, timed=True)) / ROUNDS

    command: tuple[str | Path, ...] = ("run", config, "--out", run)
    reached = set()
    for kill in range(20):
        before = check(run)
        pid = launcher.start(*command)
        if kill % 4:  # in the middle of a round's training, evaluation or writing; else while it starts
            wait_until(lambda last=before: last_round(run) > last, "a round")  # type: ignore[misc]
        until = time.monotonic() + chance.uniform(0, 2 * a_round)
        while time.monotonic() < until and last_round(run) < before + 4:  # the machine may be faster than it was
            time.sleep(0.002)
        if kill % 2:
            os.killpg(pid, signal.SIGKILL)  # with its workers, as when memory runs out
        else:
            os.kill(pid, signal.SIGKILL)
        code, printed = launcher.wait()
        assert code == -signal.SIGKILL, f"the run ended before kill {kill}: {printed}"
        reached.add(check(run))
        if (run / "config.toml").exists():
            command = ("resume", run)
    assert len(reached) > 10

    code, printed = launcher.run("resume", run)
    assert code == 0, printed
    assert_same_run(run, reference)


def test_a_kill_at_each_moment_of_each_write_changes_no_bit(launcher: Launcher, tmp_path: Path) -> None:
    config = config_of(tmp_path, rounds=2, workers=1)
    reference, run = tmp_path / "uninterrupted", tmp_path / "killed"
    assert launcher.run("run", config, "--out", reference)[0] == 0

    # A write has four moments (see Launcher). Creation writes two files, rounds 0, 1 and 2 write two each, the end one.
    # A kill at the eighth moment is one after two files, so that the next eight are those of the next two files.
    left = set()
    for moment in [*range(1, 9), *range(1, 9), *range(1, 9), *range(1, 9), *range(1, 5)]:
        command = ("resume", run) if (run / "config.toml").exists() else ("run", config, "--out", run)
        code, printed = launcher.run(*command, die_at_moment=moment)
        assert code == -signal.SIGKILL, f"moment {moment} never came: {printed}"
        check(run)
        left |= {path.name.split(".")[1] for path in run.glob(".*.tmp")}
    assert left == {"run", "config", "metrics", "checkpoint", "model"}

    assert launcher.run("resume", run)[0] == 0
    assert_same_run(run, reference)


def test_a_directory_whose_creation_was_killed_is_no_run_yet(launcher: Launcher, tmp_path: Path) -> None:
    config, run = config_of(tmp_path, rounds=1, workers=1), tmp_path / "run"
    assert launcher.run("run", config, "--out", run, die_at_moment=6)[0] == -signal.SIGKILL
    assert {path.name.split(".")[1] for path in run.glob(".*.tmp")} == {"config"}
    assert (
        call("resume", run).err
        == f"error: {run} is no run directory: it holds no config.toml; name one that fedsparsify run has written\n"
    )
    assert call("run", config, "--out", run).code == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(lambda pid: os.killpg(pid, signal.SIGINT), id="Ctrl-C"),
        pytest.param(lambda pid: os.kill(pid, signal.SIGTERM), id="SIGTERM"),
        pytest.param(lambda pid: os.killpg(pid, signal.SIGTERM), id="SIGTERM to all"),
    ],
)
def test_a_stopped_run_says_how_to_go_on_and_does_so_bit_for_bit(
    stop: Callable[[int], None], backend: str, launcher: Launcher, uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    config = config_of(tmp_path, ROUNDS, backend=backend)
    reference, run = uninterrupted(backend), tmp_path / "a run"
    pid = launcher.start("run", config, "--out", run)
    wait_until(lambda: last_round(run) >= 4, "round 4")
    workers = children(pid)
    assert len(workers) == (2 if backend == "torch" else 0)
    stop(pid)
    code, printed = launcher.wait()
    assert code == 130
    assert re.search(rf"go on with: .*fedsparsify resume '{run}'\n", printed)
    assert "Traceback" not in printed and "Exception" not in printed
    assert 4 <= check(run) < ROUNDS
    assert not any(map(alive, workers))
    assert not list(run.glob(".*.tmp"))

    assert launcher.run("resume", run)[0] == 0
    assert_same_run(run, reference)


def test_workers_end_when_their_parent_is_killed(launcher: Launcher, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    pid = launcher.start("run", config_of(tmp_path, rounds=100_000), "--out", run)
    wait_until(lambda: last_round(run) >= 1, "round 1")
    workers = children(pid)
    assert len(workers) == 2 and all(map(alive, workers))
    os.kill(pid, signal.SIGKILL)
    assert launcher.wait()[0] == -signal.SIGKILL
    wait_until(lambda: not any(map(alive, workers)), "the workers' end")


def test_a_running_directory_is_refused_to_others(launcher: Launcher, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pid = launcher.start("run", config_of(tmp_path, rounds=100_000), "--out", run)
    try:
        wait_until(lambda: last_round(run) >= 1, "round 1")
        refused = call("resume", run)
    finally:
        os.killpg(pid, signal.SIGKILL)
        launcher.wait()
    assert (refused.code, refused.err) == (2, f"error: {run} is already in use: another process is running it\n")
