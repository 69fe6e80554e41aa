"""What all commands share: where they print, the looks of a table, how they are stopped, and what they are called."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console

__all__ = ["PLAIN", "new_console", "own_command", "terminable"]

PLAIN: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": 0, "pad_edge": False}
"""The looks of a table that fits into 80 columns."""


def new_console() -> Console:
    """Return a console as wide as the terminal; a file or pipe has no width, so that tables need not wrap there."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200)


@contextmanager
def terminable() -> Iterator[None]:
    """Treat SIGTERM, which schedulers send, as Ctrl-C."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def own_command(*arguments: str) -> str:
    """Return a line that runs this program again, to be pasted into a shell."""
    command = ["fedsparsify"] if shutil.which("fedsparsify") else [sys.executable, "-m", "fedsparsify"]
    return shlex.join([*command, *arguments])
