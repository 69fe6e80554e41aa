"""The round loop, the ways a round's bytes travel, and the run directory.

``engine.py`` is the loop; ``transport.py`` the protocol between it and the clients; ``simulator.py`` the transport
inside one machine; ``client.py`` what a client does with a message; ``links.py`` what the server knows that clients
hold; ``existing.py`` and ``flower.py`` both ends for a Flower project with a loop and training of its own. Methods and
mathematics live elsewhere.
"""

from __future__ import annotations

from .checkpoint import RunDirectory
from .client import Client, Held, receive
from .engine import Federation, Observer
from .links import Links
from .simulator import Simulator
from .transport import Reply, Transport

__all__ = [
    "Client",
    "Federation",
    "Held",
    "Links",
    "Observer",
    "Reply",
    "RunDirectory",
    "Simulator",
    "Transport",
    "receive",
]
