"""Flower's SuperNode, made to end when it has given up.

Flower's own (1.41) takes a connection that breaks off in a handshake for one that is refused: its main thread ends, and
the process waits for ever for a server that nobody uses any more. Whoever keeps it running then never learns of it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import entry_points

from .errors import FederationError

__all__ = ["run"]


def run(arguments: Sequence[str]) -> None:
    """Run ``flower-supernode`` in this process, and end the process with it.

    Args:
        arguments: of ``flower-supernode``.

    Raises:
        FederationError: Flower is not installed.
    """
    found = list(entry_points(group="console_scripts", name="flower-supernode"))
    if not found:
        raise FederationError("Flower is not installed: install fedsparsify[flower]")
    sys.argv = ["flower-supernode", *arguments]
    code = 1
    try:
        found[0].load()()
        code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)  # threads that do not end of themselves end here
