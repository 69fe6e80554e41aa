"""The round loop, the ways a round's bytes travel, and the run directory.

``engine.py`` is the loop; ``transport.py`` the protocol between it and the clients; ``simulator.py`` the transport
inside one machine; ``client.py`` what a client does with a message. Methods and mathematics live elsewhere.
"""

from __future__ import annotations

from .checkpoint import RunDirectory
from .client import client_round
from .engine import Federation, Observer
from .simulator import Simulator
from .transport import Reply, Transport

__all__ = ["Federation", "Observer", "Reply", "RunDirectory", "Simulator", "Transport", "client_round"]
