"""How the engine reaches its clients: the one seam between simulator and deployment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Reply", "Transport"]


@dataclass(frozen=True)
class Reply:
    """What came back from one client in one round.

    Attributes:
        client: index of the client that was asked.
        payload: the encoded update, or None if the client failed.
        failure: why there is no payload, in one sentence.
    """

    client: int
    payload: bytes | None
    failure: str = ""


class Transport(Protocol):
    """Carries one round's messages."""

    def exchange(self, round: int, clients: Sequence[int], broadcast: bytes) -> Iterator[Reply]:
        """Send ``broadcast`` to every client and yield one reply for each, in any order.

        A client that fails or is late yields a reply with a failure; this never raises for it.
        """
        ...
