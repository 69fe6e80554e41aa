"""An encrypted federation: the server adds up what it cannot read, and clients hold the model.

``server.py`` is the round loop, ``state.py`` what it keeps, ``client.py`` what stands before a client, ``transport.py``
where that is, ``messages.py`` what they say to each other. The encryption itself is ``secure/``, methods and training
are those of any federation.
"""

from __future__ import annotations

from .client import EncryptedClient, Keyring, open_model
from .server import EncryptedFederation
from .state import LockedState, LockedStates
from .transport import EncryptedSite, EncryptedTransport

__all__ = [
    "EncryptedClient",
    "EncryptedFederation",
    "EncryptedSite",
    "EncryptedTransport",
    "Keyring",
    "LockedState",
    "LockedStates",
    "open_model",
]
