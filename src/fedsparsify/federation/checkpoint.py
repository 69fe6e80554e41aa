"""The run directory: settings, records and checkpoint of one run, safe against being killed at any moment.

::

    config.toml       the complete settings, as run
    run.json          what the report needs besides: network, partition, schedule, machine
    metrics.jsonl     one record a round, from round 0
    checkpoint.fsp    the server's state after the last finished round
    model.fsp         the final model, when all rounds are done
    report.html       written by ``fedsparsify report``
    .lock             held while a process works in the directory

A checkpoint is 32 bytes, the SHA-256 of the settings that change results, then a message as ``wire/FORMAT.md``
specifies. Every file is replaced as a whole. A round's record is written before its checkpoint, so a directory holds
all records up to its checkpoint, and at most one more, which ``resume`` drops and makes again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import CheckpointError, RunError, WireError
from ..files import write_atomically
from ..layout import ParameterLayout
from ..state import ServerState
from ..wire import Kind, Message, decode, encode
from .engine import Record

__all__ = ["RunDirectory"]

_DIGEST_BYTES = 32


class RunDirectory:
    """One run's files; an observer of the engine. Use :meth:`create` or :meth:`open`.

    Attributes:
        path: the directory.
    """

    def __init__(self, path: Path, digest: bytes, lock: FileLock) -> None:
        self.path = path
        self._digest = digest
        self._lock = lock
        self._layout: ParameterLayout | None = None
        self._lines: list[str] = []

    @classmethod
    def create(cls, path: Path, config: str, info: Mapping[str, Any], digest: bytes) -> RunDirectory:
        """Make a new run directory and take hold of it; on failure nothing is left behind.

        Args:
            path: a directory that does not exist, or is empty.
            config: the complete settings as TOML.
            info: what goes into ``run.json``.
            digest: 32 bytes that two runs share only if the same results are expected of them.

        Raises:
            RunError: the directory is in use, or cannot be written.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(
                f"{path} is already in use: choose another directory with --out, or go on with it by"
                f" fedsparsify resume {path}"
            )
        made = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path, digest, _hold(path))
            write_atomically(path / "config.toml", config.encode())
            write_atomically(path / "run.json", json.dumps(info, indent=1).encode())
        except (OSError, RunError) as error:
            if made:
                shutil.rmtree(path, ignore_errors=True)
            if isinstance(error, RunError):
                raise
            raise RunError(f"{path} cannot be created ({error.strerror}): choose another directory") from error
        return run

    @classmethod
    def open(cls, path: Path, digest: bytes) -> RunDirectory:
        """Take hold of an existing run directory to go on with it.

        Raises:
            RunError: it is no run directory, or another process is working in it.
        """
        if not (path / "config.toml").is_file():
            raise RunError(f"{path} is no run directory: it holds no config.toml")
        return cls(path, digest, _hold(path))

    def close(self) -> None:
        """Let go of the directory."""
        self._lock.release()

    def expect(self, layout: ParameterLayout) -> None:
        """Say which network the states are of; needed before the first round is recorded."""
        self._layout = layout

    def load(self) -> ServerState | None:
        """Return the last finished round's state, or None if the run was killed before round 0 was finished.

        Raises:
            CheckpointError: the checkpoint is damaged, of another configuration or network, or lacks its records.
        """
        assert self._layout is not None
        path = self.path / "checkpoint.fsp"
        if not path.exists():
            return None
        content = path.read_bytes()
        if content[:_DIGEST_BYTES] != self._digest:
            raise CheckpointError(
                f"{path} was written by another configuration than {self.path / 'config.toml'}: restore the"
                " config.toml it was run with, or start a new run"
            )
        try:
            message = decode(content[_DIGEST_BYTES:], self._layout)
        except WireError as error:
            raise CheckpointError(f"{path} cannot be used ({error}): restore it, or start a new run") from error
        if message.kind != Kind.CHECKPOINT:
            raise CheckpointError(f"{path} is a {message.kind.name.lower()}, not a checkpoint")
        lines = self._read_records()[: message.round + 1]
        if len(lines) != message.round + 1:
            raise CheckpointError(
                f"{self.path / 'metrics.jsonl'} holds {len(lines)} of the {message.round + 1} records up to the"
                f" checkpoint of round {message.round}: restore it, or start a new run"
            )
        self._lines = lines
        return ServerState(message.round, message.model, message.memory)

    def client_done(self, round: int, done: int, total: int) -> None:
        """Nothing is kept within a round."""

    def round_done(self, state: ServerState, record: Record) -> None:
        """Keep a finished round: its record first, then the checkpoint.

        Raises:
            RunError: the disk is full or the directory cannot be written; the round before is kept.
        """
        self._lines.append(json.dumps(record))
        write_atomically(self.path / "metrics.jsonl", ("\n".join(self._lines) + "\n").encode())
        message = Message(Kind.CHECKPOINT, state.round, state.model, memory=state.memory)
        assert self._layout is not None
        write_atomically(self.path / "checkpoint.fsp", self._digest + encode(message, self._layout))

    def finish(self, state: ServerState) -> None:
        """Write the final model."""
        assert self._layout is not None
        message = Message(Kind.MODEL, state.round, state.model)
        write_atomically(self.path / "model.fsp", encode(message, self._layout))

    def _read_records(self) -> list[str]:
        path = self.path / "metrics.jsonl"
        try:
            lines = path.read_text().splitlines()
            for number, line in enumerate(lines):
                if json.loads(line)["round"] != number:
                    raise ValueError(f"line {number + 1} is not of round {number}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be used ({error}): restore it, or start a new run") from error
        return lines


def _hold(path: Path) -> FileLock:
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(f"{path} is already in use: another process is running it") from error
    return lock
