"""Flower: the transport over a SuperLink, and the apps at its ends. No other folder may import flwr.

``transport.py`` carries the engine's messages, ``apps.py`` is what SuperLink and SuperNodes start, ``records.py`` names
what lies where in a message; ``strategy.py`` is for Flower projects that have a loop and training of their own. Written
against the message API of Flower 1.41 (flwr.app, flwr.serverapp, flwr.clientapp).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from ...errors import MissingExtraError
from ...lazy import on_first_use

if find_spec("flwr") is None:
    raise MissingExtraError("A Flower federation", "flower")

if TYPE_CHECKING:
    from .apps import make_client_app, make_server_app
    from .records import Node, Task
    from .strategy import FedSparsify, SparseModel
    from .transport import FlowerTransport

__all__ = [
    "FedSparsify",
    "FlowerTransport",
    "Node",
    "SparseModel",
    "Task",
    "make_client_app",
    "make_server_app",
]

_HOME = {
    "FedSparsify": "strategy",
    "FlowerTransport": "transport",
    "Node": "records",
    "SparseModel": "strategy",
    "Task": "records",
    "make_client_app": "apps",
    "make_server_app": "apps",
}

# Imported on first use: each of Flower's many processes needs one of them.
__getattr__ = on_first_use(__name__, _HOME)
