"""FedSparsify: federated progressive sparsification, (Purge, Merge, Tune)+.

Stripelis, Gupta, Ver Steeg, Ambite, arXiv 2204.12430. The command line runs configurations (``fedsparsify --help``);
:func:`federate` runs your own network on your own data; ``fedsparsify.algorithms.fedsparsify`` is the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import on_first_use

if TYPE_CHECKING:
    from .data import Dataset
    from .errors import FedSparsifyError
    from .layout import ParameterLayout
    from .report import load_run, write_report
    from .runs import federate, resume
    from .state import ClientUpdate, ModelState, ServerState
    from .version import __version__

__all__ = [
    "ClientUpdate",
    "Dataset",
    "FedSparsifyError",
    "ModelState",
    "ParameterLayout",
    "ServerState",
    "__version__",
    "federate",
    "load_run",
    "resume",
    "write_report",
]

_HOME = {
    "ClientUpdate": "state",
    "Dataset": "data",
    "FedSparsifyError": "errors",
    "ModelState": "state",
    "ParameterLayout": "layout",
    "ServerState": "state",
    "__version__": "version",
    "federate": "runs",
    "load_run": "report",
    "resume": "runs",
    "write_report": "report",
}

# Imported on first use: torch takes seconds, and neither --help nor a report needs it.
__getattr__ = on_first_use(__name__, _HOME)
