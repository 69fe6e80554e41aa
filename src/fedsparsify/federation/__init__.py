"""The round loop, the ways a round's bytes travel, and the run directory.

``engine.py`` is the loop; ``transport.py`` the protocol between it and the clients; ``simulator.py`` the transport
inside one machine, ``flower/`` the one over a network; ``client.py`` what a client does with a message, and ``site.py``
where it does so alone; ``links.py`` what the server knows that clients hold; ``existing.py`` both ends for a project
with a loop and training of its own. Methods and mathematics live elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import on_first_use

if TYPE_CHECKING:
    from .checkpoint import RunDirectory
    from .client import Client, Held, receive
    from .engine import Federation, Observer
    from .links import Links
    from .simulator import Simulator
    from .site import Site
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
    "Site",
    "Transport",
    "receive",
]

_HOME = {
    "Client": "client",
    "Federation": "engine",
    "Held": "client",
    "Links": "links",
    "Observer": "engine",
    "Reply": "transport",
    "RunDirectory": "checkpoint",
    "Simulator": "simulator",
    "Site": "site",
    "Transport": "transport",
    "receive": "client",
}

# Imported on first use: a process of Flower's, of which there is one a message, needs no torch.
__getattr__ = on_first_use(__name__, _HOME)
