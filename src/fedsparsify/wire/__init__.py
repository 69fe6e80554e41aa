"""Models as bytes: the format (``FORMAT.md``) and its codec.

Nothing here knows how bytes travel, and nothing is imported above errors, layout and state.
"""

from __future__ import annotations

from .codec import SERVER, Kind, Message, decode, encode

__all__ = ["SERVER", "Kind", "Message", "decode", "encode"]
