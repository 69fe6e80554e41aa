"""A client that lives alone: what a deployment runs where the data are, bytes in and bytes out."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import StaleReferenceError
from ..wire import request_full
from .client import Client, Held, receive

__all__ = ["Site"]


class Site:
    """The clients of one place, usually one, and what they keep between rounds.

    What is kept may be lost at any time: a broadcast is then asked for in full, and the model is the same; only what
    rounding has left out of earlier updates (``wire.uplink``) is then missing from later ones.

    Args:
        make: index of a client -> the client, made when it is first asked.
    """

    def __init__(self, make: Callable[[int], Client]) -> None:
        self._make = make
        self._clients: dict[int, Client] = {}
        self._held: dict[int, dict[int, Held]] = {}

    def answer(self, client: int, round: int, payload: bytes) -> bytes:
        """Train on a broadcast, and return the update or the request for a broadcast in full.

        Args:
            client: index of the client.
            round: the round that the broadcast is said to be of.
            payload: the encoded broadcast.

        Raises:
            FedSparsifyError: the broadcast is malformed, or there is no such client here.
        """
        if client not in self._clients:
            self._clients[client] = self._make(client)
        tuner = self._clients[client].tuner
        # A server that was killed after a round's training and resumed asks for it again: with what was held then.
        held = {t: kept for t, kept in self._held.get(client, {}).items() if t < round}
        before = held[max(held)] if held else Held()
        try:
            received = receive(payload, before.reference, tuner.layout)
        except StaleReferenceError:
            return request_full(tuner.layout, round, client)
        update, after = self._clients[client].answer(received, before)
        self._held[client] = {t: kept for t, kept in held.items() if t == max(held)} | {received.message.round: after}
        return update
