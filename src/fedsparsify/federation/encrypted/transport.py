"""Where encrypted clients stand: before a site's clients, or before the simulator's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ...errors import FedSparsifyError
from ...state import Floats
from ..site import Site
from ..transport import Reply, Transport
from .client import EncryptedClient, Training

__all__ = ["EncryptedSite", "EncryptedTransport"]

Make = Callable[[int], EncryptedClient]
"""Index of a client -> the client, made when it is first asked."""


class EncryptedTransport:
    """A transport to clients on this machine that gives the server what it would see of them elsewhere.

    Args:
        clients: the transport to clients that train, the simulator.
        make: makes each one's side of the encryption.
    """

    def __init__(self, clients: Transport, make: Make) -> None:
        self._clients, self._make = clients, make
        self._made: dict[int, EncryptedClient] = {}

    def exchange(self, round: int, broadcasts: Mapping[int, bytes]) -> Iterator[Reply]:
        """Send orders and yield the answers; see :class:`~fedsparsify.federation.transport.Transport`."""
        training: dict[int, bytes] = {}
        for client in self._made.values():
            client.release(round)
        for k, order in sorted(broadcasts.items()):
            if k not in self._made:
                self._made[k] = self._make(k)
            try:
                answer = self._made[k].open(order)
            except FedSparsifyError as error:
                yield Reply(k, None, str(error))
                continue
            if isinstance(answer, Training):
                training[k] = answer.broadcast
            else:
                yield Reply(k, answer)
        for reply in self._clients.exchange(round, training) if training else ():
            yield self._closed(reply)

    def carried(self) -> Mapping[str, Floats]:
        """Return nothing: a client that has lost its model is sent it."""
        return {}

    def restore(self, carried: Mapping[str, Floats]) -> None:
        """Do nothing; see :meth:`carried`."""

    def _closed(self, reply: Reply) -> Reply:
        if reply.payload is None:
            return reply
        try:
            return Reply(reply.client, self._made[reply.client].close(reply.payload))
        except FedSparsifyError as error:
            return Reply(reply.client, None, str(error))


class EncryptedSite:
    """A :class:`~fedsparsify.federation.site.Site` under encryption; bytes in and bytes out like it.

    Args:
        site: the clients that train.
        make: makes each one's side of the encryption.
    """

    def __init__(self, site: Site, make: Make) -> None:
        self._site, self._make = site, make
        self._made: dict[int, EncryptedClient] = {}

    def answer(self, client: int, round: int, payload: bytes) -> bytes:
        """Return the answer to an order.

        Args:
            client: index of the client.
            round: the round that the order is said to be of.
            payload: the order.

        Raises:
            FedSparsifyError: the order is malformed, or there is no such client here.
        """
        if client not in self._made:
            self._made[client] = self._make(client)
        answer = self._made[client].open(payload)
        if not isinstance(answer, Training):
            return answer
        return self._made[client].close(self._site.answer(client, round, answer.broadcast))
