"""A process that stays: work that takes seconds to get ready for, asked for by processes that live for one question.

Flower starts a process for every message. Loading torch, the data and the network in each of them would cost more than
a round of a small network's training, and what a client keeps between rounds would have to be written down each time.
The first of these processes therefore starts one that stays, and all ask it through a Unix socket in a folder of the
user's own. It ends with the process that it watches.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Client, Listener
from pathlib import Path

from ..errors import FederationError

__all__ = ["ask", "place", "serve"]

# A Unix socket's path has at most 107 bytes on Linux, and 103 elsewhere.
_LONGEST = 103

_SAME, _OTHER = b"same", b"other"
_GONE = "the site's worker process ended before it answered (out of memory, or killed)"


def place(owner: str) -> Path:
    """Return the folder of an owner's worker, which nobody else can read or write; it is made if it is not there.

    Raises:
        FederationError: the folder belongs to somebody else, or is open to others.
    """
    name = hashlib.sha256(owner.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"fedsparsify-{os.getuid()}-{name}"
    if len(os.fsencode(folder / "socket")) > _LONGEST:
        folder = Path("/tmp") / folder.name
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise FederationError(f"{folder} is not a folder of this user's alone: remove it, and find out who made it")
    return folder


def ask(folder: Path, command: Sequence[str], request: bytes) -> bytes:
    """Return the worker's answer; it is started first where none works in ``folder``, or one of another command.

    Args:
        folder: from :func:`place`.
        command: what starts the worker: a program that calls :func:`serve` with this folder and ``key_of(command)``.
        request: bytes of the worker's own format.

    Raises:
        FederationError: the worker cannot be started, or ended before it answered.
    """
    process: subprocess.Popen[bytes] | None = None
    while True:
        try:
            connection = Client(str(folder / "socket"), "AF_UNIX")
        except (FileNotFoundError, ConnectionRefusedError):
            if process is None:
                with suppress(FileNotFoundError):
                    (folder / "socket").unlink()  # of a worker that was killed
                environment = {**os.environ, "FEDSPARSIFY_WORKER": key_of(command)}
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, start_new_session=True, env=environment, close_fds=True
                )
            elif process.poll() is not None:
                raise FederationError(
                    f"the site's worker process ended with code {process.returncode}: see the SuperNode's log"
                ) from None
            time.sleep(0.02)
            continue
        with connection:
            try:
                connection.send_bytes(key_of(command).encode())
                same = connection.recv_bytes() == _SAME
            except (EOFError, OSError):  # it was just ending
                same = False
            if not same:  # it ends now, and the next one is started above
                process = None
                time.sleep(0.02)
                continue
            try:
                connection.send_bytes(request)
                return connection.recv_bytes()
            except (EOFError, OSError) as error:
                raise FederationError(_GONE) from error


def key_of(command: Sequence[str]) -> str:
    """Return what tells a worker that was started by one command from others."""
    return hashlib.sha256("\0".join(command).encode()).hexdigest()


def serve(folder: Path, handler: Callable[[bytes], bytes], *, watched: int, idle: float) -> None:
    """Answer requests, one at a time, until the watched process ends, another worker is wanted, or nobody asks.

    Args:
        folder: where the socket is to be.
        handler: request -> answer; what it raises ends the worker.
        watched: a process; with it this one ends at once, in the middle of a request too.
        idle: seconds without a request after which the worker ends.
    """
    key = os.environ["FEDSPARSIFY_WORKER"]
    path = folder / "socket"
    last = [time.monotonic()]  # of the last request's end; infinity while there is one

    def leave() -> None:
        with suppress(OSError):
            path.unlink()
        with suppress(OSError):
            folder.rmdir()
        os._exit(0)

    def watch() -> None:
        while _lives(watched) and time.monotonic() - last[0] < idle:
            time.sleep(1.0)
        leave()

    with Listener(str(path), "AF_UNIX") as listener:
        threading.Thread(target=watch, daemon=True).start()
        while True:
            with listener.accept() as connection, suppress(EOFError, OSError):  # who asked may be gone
                if connection.recv_bytes() != key.encode():
                    listener.close()  # first, so that nobody finds a socket that does not answer
                    connection.send_bytes(_OTHER)
                    return
                connection.send_bytes(_SAME)
                request = connection.recv_bytes()
                last[0] = float("inf")
                answer = handler(request)
                last[0] = time.monotonic()
                connection.send_bytes(answer)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
