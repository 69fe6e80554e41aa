"""What the server remembers of its clients, so that only what changed need be sent.

A client's side is :class:`~fedsparsify.federation.client.Held`. Neither changes a model: messages lose nothing by what
they are coded against, and an end that has forgotten is served in full.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ..layout import ParameterLayout
from ..state import Floats, ModelState
from ..wire import Kind, Message, Reference, encode

__all__ = ["Links", "mean_step", "step_between", "uplink_reference"]

_NO_BUFFERS = np.zeros(0, np.float32)
_HALF = np.float32(0.5)


def step_between(before: ModelState, after: ModelState) -> Floats:
    """Return how the survivors of ``after`` moved, float32[k]: the drift of a broadcast coded against ``before``."""
    return after.values - before.at(after.mask)


def mean_step(trend: ModelState | None, start: ModelState, update: ModelState) -> ModelState:
    """Return the mean step of a client after one more update, at the survivors of the broadcast.

    Args:
        trend: the mean step so far, or None.
        start: the broadcast.
        update: what the client made of it; what it pruned itself counts as unmoved.
    """
    step = update.at(start.mask) - start.values
    if update.mask is not start.mask:
        step[~update.mask[start.mask]] = 0
    if trend is not None:
        before = trend.at(start.mask)
        step = before + _HALF * (step - before)
    return ModelState.of_values(step, start.mask, _NO_BUFFERS)


def uplink_reference(start: ModelState, trend: ModelState | None, layout: ParameterLayout) -> Reference:
    """Return what a client's update is coded against: the broadcast, and how the client has been moving."""
    return Reference(start, layout, None if trend is None else trend.at(start.mask))


@dataclass(eq=False)
class _Link:
    """What the server knows of one client: the broadcast that it holds, the one before it, and its trend."""

    last: int
    before: int | None
    trend: ModelState | None


@dataclass(eq=False)
class Links:
    """The server's side of all links.

    Attributes:
        layout: the network's layout.
        clients: number of clients there are.
        memory: bytes that earlier broadcasts may take, and that the trends of all clients may take.
    """

    layout: ParameterLayout
    clients: int
    memory: int
    _sent: dict[int, ModelState] = field(default_factory=dict)
    _links: dict[int, _Link] = field(default_factory=dict)
    _open: dict[int, _Link] = field(default_factory=dict)
    _plain: bytes | None = None
    _remembers: bool = False

    def broadcast(self, t: int, model: ModelState, clients: Iterable[int]) -> dict[int, bytes]:
        """Encode round t's broadcast for each client, once for all that hold the same."""
        self._sent[t] = ModelState.of_values(model.values, model.mask, model.buffers)
        self._remembers = 4 * model.nonzero * self.clients <= self.memory
        self._plain = None
        self._open = {}
        self._evict()
        encoded: dict[tuple[int, int | None], bytes] = {}
        messages = {}
        for k in clients:
            link = self._links.get(k)
            if link is None:
                messages[k] = self.plain(k)
                continue
            key = (link.last, link.before)
            if key not in encoded:
                encoded[key] = encode(self._message(), self.layout, self._reference(link))
            messages[k] = encoded[key]
            self._open[k] = _Link(t, link.last, link.trend if self._remembers else None)
        return messages

    def plain(self, client: int) -> bytes:
        """Return this round's broadcast for a client that holds nothing."""
        self.forget(client)
        if self._plain is None:
            self._plain = encode(self._message(), self.layout)
        self._open[client] = _Link(self._round, None, None)
        return self._plain

    def reference(self, client: int) -> Reference:
        """Return what the client's update of this round is coded against."""
        return uplink_reference(self._sent[self._round], self._open[client].trend, self.layout)

    def confirm(self, client: int, update: ModelState) -> None:
        """Note that a client's update has arrived: it holds this round's broadcast."""
        link = self._open.pop(client)
        if self._remembers:
            link.trend = mean_step(link.trend, self._sent[self._round], update)
        self._links[client] = link

    def forget(self, client: int) -> None:
        """Note that nothing is known of a client any more."""
        self._links.pop(client, None)
        self._open.pop(client, None)

    @property
    def _round(self) -> int:
        return next(reversed(self._sent))

    def _message(self) -> Message:
        return Message(Kind.BROADCAST, self._round, self._sent[self._round], remember=self._remembers)

    def _reference(self, link: _Link) -> Reference:
        model = self._sent[link.last]
        drift = None if link.before is None else step_between(self._sent[link.before], model)
        return Reference(model, self.layout, drift)

    def _evict(self) -> None:
        """Drop broadcasts that nobody holds, and the oldest ones while they take too much memory."""
        held = {r for link in self._links.values() for r in (link.last, link.before)}
        for r in list(self._sent)[:-1]:
            if r not in held:
                del self._sent[r]
        while len(self._sent) > 1 and sum(_size(model) for model in self._sent.values()) > self.memory:
            oldest = next(iter(self._sent))
            del self._sent[oldest]
            for k in [k for k, link in self._links.items() if oldest in (link.last, link.before)]:
                self.forget(k)


def _size(model: ModelState) -> int:
    return 4 * len(model.values) + len(model.mask)
