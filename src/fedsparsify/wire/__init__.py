"""Models as bytes: the format (``FORMAT.md``) and its codec.

Nothing here knows how bytes travel, and nothing is imported above errors, layout and state.
"""

from __future__ import annotations

from .codec import SERVER, Kind, Message, decode, encode, open_message, request_full
from .explain import Explanation, Section, explain
from .floats import Coding
from .reference import Reference

__all__ = [
    "SERVER",
    "Coding",
    "Explanation",
    "Kind",
    "Message",
    "Reference",
    "Section",
    "decode",
    "encode",
    "explain",
    "open_message",
    "request_full",
]
