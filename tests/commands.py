"""The command line as tests call it, and a federation that is small enough for them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsparsify.cli import main

ROOT = Path(__file__).parents[1]

CONFIG = """
[run]
rounds = 3
workers = 1

[data]
name = "digits"

[federation]
clients = 4

[model]
name = "2-fc"
inputs = 64
hidden = 8

[method]
name = "fedsparsify-global"

[schedule]
final = 0.9

[train]
lr = 0.1
epochs = 1
backend = "torch"
"""


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


def call(*arguments: str | Path) -> Outcome:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
    assert isinstance(code, int), "a command must end with an exit code"
    return Outcome(code, out.getvalue(), err.getvalue())


def write_config(folder: Path, text: str = CONFIG, name: str = "tiny.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its content, and every folder; locks say nothing and are left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }


def records(run: Path, *, timed: bool = False, resumed: bool = False) -> list[dict[str, Any]]:
    """The records of a run, by default without the figures that no two runs share.

    After a stop both ends have forgotten what they held, so a ``resumed`` run's bytes are its own too.
    """
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    own = (*(() if timed else ("seconds",)), *(("bytes",) if resumed else ()))
    return [{key: value for key, value in line.items() if not key.startswith(own)} for line in lines]


def wait_until(happened: Callable[[], object], what: str, seconds: float = 1800.0) -> None:
    """Poll until something is true, and fail if it does not become so."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.002)


_LAUNCHER = """
import json, os, signal, sys, threading, traceback
import fedsparsify.cli, fedsparsify.experiment, fedsparsify.files
import fedsparsify.progress, fedsparsify.report, fedsparsify.runs

def count_down(writes):
    # SIGKILL to ourselves at one of a write's four moments: file empty, half full, full, renamed.
    left = [writes]
    files = fedsparsify.files

    def moment():
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    class File:
        def __init__(self, *arguments):
            self.file = open(*arguments)
            moment()
        def __enter__(self):
            return self
        def __exit__(self, *_):
            self.file.close()
        def __getattr__(self, name):
            return getattr(self.file, name)
        def write(self, content):
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            moment()
            self.file.write(content[len(content) // 2 :])

    class Os:
        def __getattr__(self, name):
            return getattr(os, name)
        def replace(self, *arguments):
            moment()
            os.replace(*arguments)
            moment()

    files.open, files.os = File, Os()

for line in sys.stdin:
    task = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stdin = open(os.devnull)
        log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if task["die_at_moment"]:
            count_down(task["die_at_moment"])
        code = 99
        try:
            fedsparsify.cli.main(task["arguments"])
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # as the interpreter's end would
            [p.kill() for p in sys.modules["multiprocessing"].active_children()]
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Launcher:
    """Runs commands in processes of their own, each leader of its own process group, without starting Python anew.

    Use it as a context manager; one command at a time.
    """

    def __init__(self, folder: Path) -> None:
        self._log = folder / "launched.log"
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )
        self.pid = 0

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pid:  # what a failed test has left running
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()
        self._process.communicate()

    def start(self, *arguments: str | Path, die_at_moment: int = 0) -> int:
        """Start a command and return its process id."""
        task = {"arguments": [str(a) for a in arguments], "die_at_moment": die_at_moment, "log": str(self._log)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        self.pid = int(self._line())
        return self.pid

    def wait(self) -> tuple[int, str]:
        """Return the exit code of the command (negative for a signal) and what it printed."""
        code = int(self._line())
        self.pid = 0
        return code, self._log.read_text()

    def run(self, *arguments: str | Path, die_at_moment: int = 0) -> tuple[int, str]:
        """Start a command and wait for its end."""
        self.start(*arguments, die_at_moment=die_at_moment)
        return self.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the launcher died"
        return line


def children(pid: int) -> list[int]:
    """Process ids of a process's children."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
