"""How the engine reaches its clients: the one seam between simulator and deployment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from ..state import Floats

__all__ = ["Reply", "Transport", "clean"]

_LONGEST = 300


@dataclass(frozen=True)
class Reply:
    """What came back from one client in one round.

    Attributes:
        client: index of the client that was asked.
        payload: the encoded update, or the request for a broadcast in full, or None if the client failed.
        failure: why there is no payload, in one sentence.
    """

    client: int
    payload: bytes | None
    failure: str = ""


class Transport(Protocol):
    """Carries one round's messages."""

    def exchange(self, round: int, broadcasts: Mapping[int, bytes]) -> Iterator[Reply]:
        """Send every client its broadcast and yield one reply for each, in any order.

        A client that fails or is late yields a reply with a failure; this never raises for it.
        """
        ...

    def carried(self) -> Mapping[str, Floats]:
        """Return what clients keep that changes results and would be lost with this process, for the checkpoint."""
        ...

    def restore(self, carried: Mapping[str, Floats]) -> None:
        """Give clients back what :meth:`carried` returned."""
        ...


def clean(text: str | None) -> str:
    r"""Return a peer's text as one line without control characters, cut to a few hundred.

    >>> clean("two\nlines\x1b[31m")
    'two lines [31m'
    """
    printable = "".join(character if character.isprintable() else " " for character in (text or "")[: 4 * _LONGEST])
    return " ".join(printable.split())[:_LONGEST] or "failed without a reason"
