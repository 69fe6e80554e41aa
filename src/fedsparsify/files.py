"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .errors import ArgumentError, RunError

__all__ = [
    "OF_A_RUN",
    "check_run",
    "check_target",
    "new_private_file",
    "remove_leftovers",
    "replace_file",
    "write_atomically",
]


OF_A_RUN = ("run.json", "config.toml", "metrics.jsonl", "checkpoint.fsp", "model.fsp", "model.locked", "clients.key")
"""What a run directory holds of its own."""

# Messages and checkpoints, also of encrypted runs, and keys; a checkpoint has a digest of 32 bytes before.
_PRECIOUS = (b"FSPM", b"FSX1", b"FSK1")


def check_run(path: Path) -> None:
    """Refuse a folder that no run was begun in.

    Raises:
        RunError: it is none.
    """
    if not (path / "config.toml").is_file():
        raise RunError(
            f"{path} is no run directory: it holds no config.toml; name one that fedsparsify run has written"
        )


def check_target(path: Path, *inputs: Path) -> None:
    """Refuse to write where something would be lost that nobody means to replace.

    Args:
        path: what is to be written.
        inputs: what it is made of.

    Raises:
        ArgumentError: it is a folder, a device or the like, one of the inputs, a key, or a run's own.
    """
    if path.is_dir():
        raise ArgumentError(f"{path} is a directory: name a file")
    if path.exists() and not path.is_file():
        raise ArgumentError(f"{path} is no ordinary file: name another")
    if any(path.exists() and path.samefile(source) for source in inputs):
        raise ArgumentError(f"{path} is the file that it would be made of: name another")
    if path.name in OF_A_RUN and (path.parent / "config.toml").is_file():
        raise ArgumentError(f"{path} is a run's own: name another file")
    if path.exists():
        with open(path, "rb") as file:
            head = file.read(36)
        if head[:4] in _PRECIOUS or head[32:] in _PRECIOUS:
            raise ArgumentError(f"{path} is a key, or a model or checkpoint of a run: name another file")


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, finds the old content or the new one, never a part.

    Only one thread of a process may write the same path at a time.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    _put(path, content, 0o666, os.replace)


def new_private_file(path: Path, content: bytes) -> None:
    """Write a new file that only its owner can read: at any moment it is whole, or not there.

    Raises:
        FileExistsError: it is there already, and stays as it is.
        OSError: the disk is full or the folder cannot be written.
    """
    _put(path, content, 0o600, os.link)


def _put(path: Path, content: bytes, mode: int, place: Callable[[Path, Path], None]) -> None:
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with suppress(FileNotFoundError):  # of a killed process that had our number
            os.unlink(temporary)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        place(temporary, path)
    finally:
        with suppress(OSError):  # it was renamed, or there is no folder
            os.unlink(temporary)
    _sync_folder(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file of a run, see :func:`replace_file`.

    Raises:
        RunError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    try:
        replace_file(path, content)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error.strerror or error}); the last state is kept: make room or mend the"
            " folder, then resume"
        ) from error


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of writes of ``path`` that were killed; nobody may be writing it now."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the platform can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # some network file systems cannot; the file itself is safe
            os.fsync(handle)
    finally:
        os.close(handle)
