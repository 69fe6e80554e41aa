"""Sums of what clients must not show: additively homomorphic encryption around a payload, for few bytes a value.

A client encrypts integers (:func:`encrypt`), a server without any key adds the messages up (:func:`add`), and whoever
holds the clients' common key reads the sum (:func:`decrypt`). ``scheme.py`` says with which parameters and how many may
take part, ``messages.py`` how it is written, ``sealing.py`` is the only file that knows the library. Nothing here knows
of models: which values are encrypted, and as which integers (``fixed.py``), is the caller's affair.

It protects from a server that keeps to its part and is curious. Not from one that works with a client, for the key is
common, and not from one that tampers and sees what comes of it: see :class:`~fedsparsify.errors.TamperedError` and
``docs/security.md``.

It needs the extra ``encryption``, but for :func:`add`: a server's part is additions modulo a prime. Many participants'
sums are smaller if it expands their seeds, which needs the library and no key.
"""

from __future__ import annotations

from .ciphers import CIPHERS, Cipher
from .fixed import FixedPoint, Limbs
from .keys import Key
from .locked import digest, lock, unlock
from .messages import Adder, add
from .scheme import AnyScheme, CkksScheme, Scheme
from .sealing import decrypt, encrypt, expand, make_key

__all__ = [
    "CIPHERS",
    "Adder",
    "AnyScheme",
    "Cipher",
    "CkksScheme",
    "FixedPoint",
    "Key",
    "Limbs",
    "Scheme",
    "add",
    "decrypt",
    "digest",
    "encrypt",
    "expand",
    "lock",
    "make_key",
    "unlock",
]
