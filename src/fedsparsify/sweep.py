"""A sweep: many runs below one directory, each in a process of its own, several at once, and resumable.

::

    sweep.toml      the grid, as it was last given
    NAME/           an ordinary run directory for each run
    logs/NAME.toml  the settings that a run was started with
    logs/NAME.log   what it printed
    .lock           held while a sweep works in the directory

What is done is read from the run directories alone, so a sweep that was killed goes on by the same command, and runs
that were made in another way count. A run that another process is working on, such as one that outlived a killed sweep,
is waited for.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from filelock import FileLock, Timeout

from .config import load_settings
from .errors import RunError
from .files import remove_leftovers, write_atomically
from .sweep_grid import Grid, PlannedRun, differing_keys

__all__ = ["Failed", "Status", "SweepObserver", "run_sweep", "strays", "survey"]

State = Literal["done", "started", "missing", "running"]

POLL = 0.5
"""Seconds between two looks at the processes."""

PATIENCE = 60.0
"""Seconds that a process has for its end after it was asked to stop."""


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        run: the run.
        path: its directory, which may not exist.
        state: ``"done"``, ``"started"`` (to be resumed), ``"missing"``, or ``"running"``, in a process of another.
        round: the newest recorded round; None before round 0.
    """

    run: PlannedRun
    path: Path
    state: State
    round: int | None

    @property
    def rounds(self) -> int:
        """T, the number of rounds it is to have."""
        return self.run.settings.run.rounds


@dataclass(frozen=True)
class Failed:
    """A run that did not come to its end: its name, the last line that it printed, and its log."""

    name: str
    reason: str
    log: Path


class SweepObserver(Protocol):
    """Is told how a sweep goes on."""

    def started(self, status: Status) -> None:
        """A run begins, or goes on; or is found to be running already."""

    def ended(self, status: Status, failed: Failed | None) -> None:
        """A run is done, or has failed."""

    def watched(self, running: Sequence[Status]) -> None:
        """Time has passed; these are running."""


def survey(grid: Grid, folder: Path) -> list[Status]:
    """Return how far each run of a grid is, in the grid's order.

    Raises:
        RunError: a directory holds a run with other settings.
        ConfigError: a run's saved settings cannot be read.
    """
    return [_look(run, folder / run.name) for run in grid.runs]


def strays(grid: Grid, folder: Path) -> list[str]:
    """Return the names of the run directories that are of no run in the grid; a report shows them all the same."""
    planned = {run.name for run in grid.runs}
    return sorted(
        path.parent.name for path in folder.glob("*/config.toml") if path.parent.name not in {*planned, "logs"}
    )


def run_sweep(grid: Grid, folder: Path, todo: Sequence[Status], jobs: int, observer: SweepObserver) -> list[Failed]:
    """Run what is not done, and return what failed.

    Args:
        grid: the sweep; its text becomes ``sweep.toml``.
        folder: the sweep's directory, made if missing.
        todo: the runs to do, in this order; those that are done are passed over.
        jobs: how many run at once; each trains with its share of the cores.
        observer: is told of what happens.

    Raises:
        RunError: the directory cannot be written, or another sweep is working in it.
        KeyboardInterrupt: after the running processes have saved and ended.
    """
    with ExitStack() as stack:
        try:
            (folder / "logs").mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".lock")
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunError(f"{folder}: another sweep is working here: wait for it, or stop it") from error
        except OSError as error:
            raise RunError(f"{folder} cannot be written ({error.strerror}): choose another --out") from error
        stack.callback(lock.release)
        remove_leftovers(folder / "sweep.toml")
        write_atomically(folder / "sweep.toml", grid.text.encode())
        return _Sweep(folder, jobs, observer, stack).run(todo)


class _Sweep:
    def __init__(self, folder: Path, jobs: int, observer: SweepObserver, stack: ExitStack) -> None:
        self._folder = folder
        self._jobs = jobs
        self._observer = observer
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        stack.callback(self._stop)

    def run(self, todo: Sequence[Status]) -> list[Failed]:
        waiting = [_look(status.run, status.path) for status in todo]  # again, now that the lock is held
        elsewhere = [status for status in waiting if status.state == "running"]
        waiting = [status for status in waiting if status.state in ("missing", "started")]
        running: list[Status] = []
        failures: list[Failed] = []
        for status in elsewhere:
            self._observer.started(status)
        while waiting or running or elsewhere:
            while waiting and len(running) + len(elsewhere) < self._jobs:
                status = waiting.pop(0)
                self._start(status)
                running.append(status)
                self._observer.started(status)
            time.sleep(POLL)
            for status in [s for s in running if self._processes[s.run.name].poll() is not None]:
                running.remove(status)
                failed = self._outcome(status, self._processes.pop(status.run.name).returncode)
                failures += [failed] if failed else []
                self._observer.ended(_look(status.run, status.path), failed)
            for status in list(elsewhere):
                now = _look(status.run, status.path)
                if now.state != "running":
                    elsewhere.remove(status)
                    if now.state == "done":
                        self._observer.ended(now, None)
                    else:
                        waiting.insert(0, now)
            self._observer.watched([_look(s.run, s.path, probe=False) for s in (*running, *elsewhere)])
        return failures

    def _start(self, status: Status) -> None:
        name, log = status.run.name, self._folder / "logs" / status.run.name
        # The bits of a run do not depend on it.
        workers = status.run.settings.run.workers or max(1, (os.cpu_count() or 1) // self._jobs)
        command = [sys.executable, "-m", "fedsparsify"]
        if status.state == "started":
            command += ["resume", str(status.path), "--workers", str(workers)]
        else:
            settings = status.run.settings
            settings = settings.model_copy(update={"run": settings.run.model_copy(update={"workers": workers})})
            remove_leftovers(log.with_name(f"{name}.toml"))
            write_atomically(log.with_name(f"{name}.toml"), settings.to_toml().encode())
            command += ["run", str(log.with_name(f"{name}.toml")), "--out", str(status.path)]
        # The package may be on this process's path only.
        path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
        with open(log.with_name(f"{name}.log"), "ab") as out:
            self._processes[name] = subprocess.Popen(
                [*command, "--no-report"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # else Ctrl-C would reach it twice, and break into its saving
                env={**os.environ, "PYTHONPATH": path},
            )

    def _outcome(self, status: Status, code: int) -> Failed | None:
        log = self._folder / "logs" / f"{status.run.name}.log"
        if code == 0 and _look(status.run, status.path).state == "done":
            return None
        if code < 0:
            reason = f"killed by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                reason += ", as the system does for lack of memory: try fewer --jobs"
        else:
            reason = _last_line(log)
        return Failed(status.run.name, reason, log)

    def _stop(self) -> None:
        """Let the processes save and end; all rounds that they finished are kept in any case."""
        for process in self._processes.values():
            process.terminate()
        deadline = time.monotonic() + PATIENCE
        for process in self._processes.values():
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.kill()
                process.wait()


def _look(run: PlannedRun, path: Path, *, probe: bool = True) -> Status:
    """Return how far a run is; without ``probe`` one that is not done counts as running, and is not compared."""
    if not (path / "config.toml").is_file():
        held = not probe or _held(path)
        return Status(run, path, "running" if held else "missing", None)
    number = _newest_round(path / "metrics.jsonl")
    if not probe:
        return Status(run, path, "running", number)
    saved = load_settings(path / "config.toml")
    if saved.digest != run.settings.digest:
        raise RunError(
            f"{path} holds a run with other settings than {run.place} asks for:"
            f" {'; '.join(differing_keys(saved, run.settings))}: move it away, choose another --out, or undo the change"
        )
    if _held(path):
        return Status(run, path, "running", number)
    # Killed between the last round and the final model: resuming writes that.
    unfinished = (path / "checkpoint.fsp").exists() and not (path / "model.fsp").exists()
    done = number == run.settings.run.rounds and not unfinished and (path / "run.json").is_file()
    return Status(run, path, "done" if done else "started", number)


def _held(path: Path) -> bool:
    """Whether a process is working in a run directory."""
    if not (path / ".lock").exists():
        return False
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a directory that can only be read is of a run that is not going on
        return False
    lock.release()
    return False


def _newest_round(path: Path) -> int | None:
    with suppress(OSError, ValueError, LookupError, TypeError):
        with path.open("rb") as file:
            size = path.stat().st_size
            for window in (65536, size):  # the whole file where one record, which names its clients, is longer
                file.seek(max(0, size - window))
                lines = file.read().splitlines()
                if len(lines) > 1:
                    break
        number = json.loads(lines[-1])["round"]
        return number if isinstance(number, int) else None
    return None


def _last_line(log: Path) -> str:
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        for line in reversed(lines):
            if text := "".join(c for c in line.strip() if c.isprintable()):
                return text.removeprefix("error: ")[:500]
    return "it printed nothing"
