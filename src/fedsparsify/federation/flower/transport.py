"""The transport over a SuperLink.

A model travels as one opaque array of bytes, encoded and judged as in the simulator; beside it go the client's index
and the round. Whatever a SuperNode answers is data until the engine has decoded it: sizes are checked here before that,
and texts are cut and cleaned before they reach a record or a log.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from ...state import Floats
from ..transport import Reply, clean
from .records import FAILURE, MODEL, PAYLOAD, STYPE, TASK, opaque

__all__ = ["FlowerTransport"]

# Replies that are in this process at once, at most; the others wait at the SuperLink.
_WINDOW = 8

# What Flower answers for a SuperNode that it has not heard of for a while.
_NODE_UNAVAILABLE = 5

_NOT_TAKEN = "Flower did not take the message for it"

# Seconds after the deadline at which Flower drops a message, so that it is our deadline which is named.
_SLACK = 10.0


class FlowerTransport:
    """A transport whose clients are SuperNodes.

    Args:
        grid: Flower's way to them.
        clients: number of clients.
        sites: names that SuperNodes are registered under: client k is the k-th. Empty: the SuperNodes that are there
            when the first round begins, in the order of their identifiers.
        deadline: seconds that a round's clients have to answer.
        patience: seconds that a round waits for SuperNodes that are not connected, or are lost before they have
            answered.
        largest: bytes of the largest reply that is read.
        calibration: see :class:`.records.Task`.
        pause: seconds between two looks for replies.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        clients: int,
        sites: Sequence[str],
        deadline: float,
        patience: float,
        largest: int,
        calibration: str = "",
        pause: float = 0.2,
    ) -> None:
        self._grid = grid
        self._clients = clients
        self._sites = tuple(sites)
        self._deadline, self._patience, self._pause = deadline, patience, pause
        self._largest = largest
        self._calibration = calibration
        self._order: list[int] = []  # node identifiers, where there are no names

    def exchange(self, round: int, broadcasts: Mapping[int, bytes]) -> Iterator[Reply]:
        """Send broadcasts and yield the replies; see :class:`~fedsparsify.federation.transport.Transport`."""
        nodes, absent = self._find(set(broadcasts))
        for k in sorted(absent):
            yield Reply(k, None, absent[k])
        until = time.monotonic() + self._deadline
        sent = self._push(round, broadcasts, nodes, self._deadline)
        for k in sorted(set(nodes) - set(sent.values())):
            yield Reply(k, None, _NOT_TAKEN)
        yield from self._collect(round, broadcasts, sent, until)

    def _push(
        self, round: int, broadcasts: Mapping[int, bytes], nodes: Mapping[int, int], seconds: float
    ) -> dict[str, int]:
        """Hand messages to the SuperLink; return message -> client."""
        messages: list[Message] = []
        same: dict[bytes, ArrayRecord] = {}
        for k, node in sorted(nodes.items()):
            payload = broadcasts[k]
            # One record for all that are sent the same: Flower then sends it to the SuperLink once.
            model = same.setdefault(payload, opaque(payload))
            task = ConfigRecord({"client": k, "round": round, "calibration": self._calibration})
            content = RecordDict({MODEL: model, TASK: task})
            messages.append(Message(content, node, "train", ttl=seconds + _SLACK, group_id=str(round)))
        taken = self._grid.push_messages(messages) if messages else []
        return dict(zip(taken, sorted(nodes), strict=False))

    def carried(self) -> Mapping[str, Floats]:
        """Return nothing: what clients keep is theirs, and they keep it over a restart of the server."""
        return {}

    def restore(self, carried: Mapping[str, Floats]) -> None:
        """Do nothing; see :meth:`carried`."""

    def _find(self, wanted: set[int]) -> tuple[dict[int, int], dict[int, str]]:
        """Return client -> SuperNode, and client -> why there is none, after waiting for those that are absent."""
        until = time.monotonic() + self._patience
        while True:
            nodes, absent = self._connected(wanted)
            if not absent or time.monotonic() >= until:
                return nodes, absent
            time.sleep(self._pause)

    def _connected(self, wanted: set[int]) -> tuple[dict[int, int], dict[int, str]]:
        found = list(self._grid.get_nodes())
        nodes, absent = {}, {}
        if not self._sites:
            here = {node.node_id for node in found}
            self._order += sorted(here - set(self._order))
            for k in wanted:
                if k < len(self._order) and self._order[k] in here:
                    nodes[k] = self._order[k]
                else:
                    absent[k] = f"no SuperNode is connected for it within {self._patience:g} s"
            return nodes, absent
        for k in wanted:
            name = self._sites[k]
            named = [node.node_id for node in found if node.name == name]
            if len(named) == 1:
                nodes[k] = named[0]
            elif named:
                absent[k] = f'{len(named)} SuperNodes are registered as "{name}": unregister all but one'
            else:
                absent[k] = f'its SuperNode "{name}" is not connected'
        return nodes, absent

    def _collect(
        self, round: int, broadcasts: Mapping[int, bytes], waiting: dict[str, int], until: float
    ) -> Iterator[Reply]:
        """Yield replies as they come, and after the deadline a failure for each that is not there.

        A node that is lost before it has answered is asked once more if it comes back within our patience: it may have
        been cut off, or the SuperLink may have been started anew.
        """
        lost: dict[int, tuple[float, Reply]] = {}  # client -> when we give it up, and then with which words
        again: set[int] = set()
        place = {client: i for i, client in enumerate(sorted(waiting.values()))}
        while waiting or lost:
            late, some = time.monotonic() >= until, False
            # Those next in the order in which they are merged: whoever is far ahead waits at the SuperLink, not here.
            end = min(place[client] for client in (*waiting.values(), *lost)) + _WINDOW
            group = [message for message, client in waiting.items() if place[client] < end]
            for message in self._grid.pull_messages(group) if group else []:
                client = waiting.pop(message.metadata.reply_to_message_id, None)
                if client is not None:
                    some = True
                    reply = self._read(client, message)
                    if _is_lost(message) and client not in again and self._patience > 0:
                        lost[client] = (time.monotonic() + self._patience, reply)
                        again.add(client)
                    else:
                        yield reply
                del message  # one at a time
            if late:
                for missing in group:
                    if missing in waiting:
                        why = f"it did not answer within {self._deadline:g} s (deployment.deadline)"
                        yield Reply(waiting.pop(missing), None, why)
            back = self._connected(set(lost))[0] if lost and not late else {}
            sent = self._push(round, broadcasts, back, until - time.monotonic()) if back else {}
            waiting |= sent
            for client, (given_up, reply) in list(lost.items()):
                if client in sent.values():
                    del lost[client]
                elif late or time.monotonic() >= given_up:
                    del lost[client]
                    yield reply
            if not (late or some):
                time.sleep(self._pause)

    def _read(self, client: int, message: Message) -> Reply:
        """Take a reply apart without trusting any of it."""
        if message.has_error():
            return Reply(client, None, clean(f"its SuperNode failed: {message.error.reason}"))
        failure = message.content.config_records.get(FAILURE)
        if failure is not None:
            return Reply(client, None, clean(str(failure.get("reason", ""))))
        record = message.content.array_records.get(MODEL)
        if record is None or list(record) != [PAYLOAD] or record[PAYLOAD].stype != STYPE:
            return Reply(client, None, "its reply holds no message of FedSparsify's")
        payload = record[PAYLOAD].data
        if len(payload) > self._largest:
            return Reply(client, None, f"its reply has {len(payload)} bytes, and at most {self._largest} can be right")
        return Reply(client, payload)


def _is_lost(message: Message) -> bool:
    return bool(message.has_error()) and message.error.code == _NODE_UNAVAILABLE
