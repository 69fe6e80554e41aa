"""The run directory: settings, records and checkpoint of one run, safe against being killed at any moment.

::

    config.toml       the complete settings, as run
    run.json          what the report needs besides: network, partition, schedule, machine
    metrics.jsonl     one record a round, from round 0
    checkpoint.fsp    the server's state after the last finished round
    model.fsp         the final model, when all rounds are done; under encryption, where the server has no key,
                      model.locked, which ``fedsparsify keys open`` makes it of
    clients.key       of a simulation under encryption: the key that was made for its clients
    report.html       written by ``fedsparsify report``
    .lock             held while a process works in the directory
    .*.tmp            left by a kill in the middle of a write; the next resume removes it

A checkpoint is 32 bytes, the SHA-256 of the settings that change results, then a message as ``wire/FORMAT.md``
specifies, or under encryption one of ``encrypted/messages.py``. Every file is replaced as a whole. ``config.toml`` is
the last file of a new directory, so that one killed before it is no run yet, and free to be used. A round's record is
written before its checkpoint, so a directory holds all records up to its checkpoint, and at most one more, which
``resume`` drops and makes again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from ..errors import CheckpointError, RunError, WireError
from ..files import OF_A_RUN, check_run, remove_leftovers, write_atomically
from ..layout import ParameterLayout
from ..state import ServerState
from ..wire import Kind, Message, decode, encode
from .engine import Record, State

__all__ = ["Form", "RunDirectory", "States", "message_in"]

_DIGEST_BYTES = 32


class Form(Protocol):
    """How the states of a run are written."""

    def write(self, state: Any) -> bytes:
        """Return a state's bytes."""
        ...

    def read(self, data: bytes) -> State:
        """Return the state.

        Raises:
            WireError: the bytes are malformed.
        """
        ...


class States:
    """The form of a server's states.

    Args:
        layout: the network that they are of.
    """

    def __init__(self, layout: ParameterLayout) -> None:
        self._layout = layout

    def write(self, state: ServerState) -> bytes:
        """Return a state's bytes."""
        return encode(Message(Kind.CHECKPOINT, state.round, state.model, memory=state.memory), self._layout)

    def read(self, data: bytes) -> ServerState:
        """Return the state.

        Raises:
            WireError: the bytes are malformed.
        """
        message = decode(data, self._layout, expected=Kind.CHECKPOINT)
        return ServerState(message.round, message.model, message.memory)


class RunDirectory:
    """One run's files; an observer of the engine. Use :meth:`create` or :meth:`open`.

    Attributes:
        path: the directory.
    """

    def __init__(self, path: Path, digest: bytes, lock: FileLock) -> None:
        self.path = path
        self._digest = digest
        self._lock = lock
        self._form: Form | None = None
        self._lines: list[str] = []

    @classmethod
    def create(cls, path: Path, config: str, info: Mapping[str, Any], digest: bytes) -> RunDirectory:
        """Make a new run directory and take hold of it; on failure nothing is left behind.

        Args:
            path: a directory that does not exist, or holds at most what a killed creation left.
            config: the complete settings as TOML.
            info: what goes into ``run.json``.
            digest: 32 bytes that two runs share only if the same results are expected of them.

        Raises:
            RunError: the directory is in use, or cannot be written.
        """
        if path.exists() and not (path.is_dir() and all(map(_is_leftover, path.iterdir()))):
            remedy = "choose another directory"
            if (path / "config.toml").is_file():
                remedy += f", or go on with it by fedsparsify resume {path}"
            raise RunError(f"{path} is already in use: {remedy}")
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _hold(path)
            if (path / "config.toml").exists():  # another process was faster
                lock.release()
                raise RunError(f"{path} is already in use: choose another directory")
        except OSError as error:
            _undo(path, missing)
            raise RunError(f"{path} cannot be created ({error.strerror}): choose another directory") from error
        try:
            write_atomically(path / "run.json", json.dumps(info, indent=1).encode())
            write_atomically(path / "config.toml", config.encode())
        except BaseException:
            lock.release()
            _undo(path, missing)
            raise
        return cls(path, digest, lock)

    @classmethod
    def open(cls, path: Path, digest: bytes) -> RunDirectory:
        """Take hold of an existing run directory to go on with it, and clear what a kill left behind.

        Raises:
            RunError: it is no run directory, or another process is working in it.
        """
        check_run(path)
        try:
            lock = _hold(path)
            for name in OF_A_RUN:
                remove_leftovers(path / name)
        except OSError as error:
            raise RunError(f"{path} cannot be written ({error.strerror}): mend the folder, then resume") from error
        return cls(path, digest, lock)

    def close(self) -> None:
        """Let go of the directory."""
        self._lock.release()

    def expect(self, form: Form) -> None:
        """Say how states are written; needed before the first round is recorded."""
        self._form = form

    def load(self) -> Any | None:
        """Return the last finished round's state, or None if the run was killed before round 0 was finished.

        Raises:
            CheckpointError: the checkpoint is damaged, of another configuration or network, or lacks its records.
        """
        assert self._form is not None
        path = self.path / "checkpoint.fsp"
        if not path.exists():
            if len(self._read_records()) > 1:
                raise CheckpointError(f"{path} is missing though rounds are recorded: restore it, or start a new run")
            return None
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read ({error.strerror}): restore it, or start a new run"
            ) from error
        if len(content) < _DIGEST_BYTES:
            raise CheckpointError(f"{path} is cut off after {len(content)} bytes: restore it, or start a new run")
        if content[:_DIGEST_BYTES] != self._digest:
            raise CheckpointError(
                f"{path} was written by another configuration than {self.path / 'config.toml'}: restore the"
                " config.toml it was run with, or start a new run"
            )
        try:
            state = self._form.read(content[_DIGEST_BYTES:])
        except WireError as error:
            raise CheckpointError(f"{path} cannot be used ({error}): restore it, or start a new run") from error
        lines = self._read_records()[: state.round + 1]
        if len(lines) != state.round + 1:
            raise CheckpointError(
                f"{self.path / 'metrics.jsonl'} holds {len(lines)} of the {state.round + 1} records up to the"
                f" checkpoint of round {state.round}: restore it, or start a new run"
            )
        self._lines = lines
        return state

    def client_done(self, round: int, done: int, total: int) -> None:
        """Nothing is kept within a round."""

    def round_done(self, state: State, record: Record) -> None:
        """Keep a finished round: its record first, then the checkpoint.

        Raises:
            RunError: the disk is full or the directory cannot be written; the round before is kept.
        """
        self._lines.append(json.dumps(record))
        write_atomically(self.path / "metrics.jsonl", ("\n".join(self._lines) + "\n").encode())
        assert self._form is not None
        write_atomically(self.path / "checkpoint.fsp", self._digest + self._form.write(state))

    def finish(self, model: bytes, name: str = "model.fsp") -> None:
        """Write the final model."""
        write_atomically(self.path / name, model)

    def _read_records(self) -> list[str]:
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        try:
            lines = path.read_text().splitlines()
            for number, line in enumerate(lines):
                if json.loads(line)["round"] != number:
                    raise ValueError(f"line {number + 1} is not of round {number}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be used ({error}): restore it, or start a new run") from error
        return lines


def message_in(content: bytes) -> bytes:
    """Return the message within a file of a run: all of it, but for a checkpoint's digest of the settings."""
    return content[_DIGEST_BYTES:] if content[_DIGEST_BYTES : _DIGEST_BYTES + 4] in (b"FSPM", b"FSX1") else content


def _is_leftover(path: Path) -> bool:
    """Whether a file says nothing about a run: made by ``create`` before ``config.toml``."""
    return path.name in (".lock", "run.json") or (path.name.startswith(".") and path.suffix == ".tmp")


def _undo(path: Path, missing: Sequence[Path]) -> None:
    """Remove what a failed creation made: its files, and the folders that were missing before, innermost first."""
    for made in (*(path / name for name in (*OF_A_RUN, ".lock")), *missing):
        with suppress(OSError):
            made.rmdir() if made in missing else made.unlink()


def _hold(path: Path) -> FileLock:
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(f"{path} is already in use: another process is running it") from error
    return lock
