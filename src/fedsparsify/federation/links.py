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

__all__ = ["Links", "mean_step", "step_between"]

_NO_BUFFERS = np.zeros(0, np.float32)
_HALF = np.float32(0.5)


def step_between(before: ModelState, after: ModelState) -> Floats | None:
    """Return how the survivors of ``after`` moved, float32[k]: the drift of a broadcast coded against ``before``.

    None where that is not finite: nothing can be foreseen of such a model, and both ends see it alike.
    """
    with np.errstate(over="ignore"):
        step = after.values - before.at(after.mask)
    return step if np.isfinite(step).all() else None


def mean_step(trend: ModelState | None, start: ModelState, update: ModelState) -> ModelState | None:
    """Return the mean step of a client after one more update, at the survivors of the broadcast; None if not finite.

    Args:
        trend: the mean step so far, or None.
        start: the broadcast.
        update: what the client made of it; what it pruned itself counts as unmoved.
    """
    with np.errstate(over="ignore"):
        step = update.at(start.mask) - start.values
        if update.mask is not start.mask:
            step[~update.mask[start.mask]] = 0
        if trend is not None:
            before = trend.at(start.mask)
            step = before + _HALF * (step - before)
    if not np.isfinite(step).all():
        return None
    return ModelState.of_values(step, start.mask, _NO_BUFFERS)


@dataclass(eq=False)
class _Link:
    """What the server knows of one client.

    Attributes:
        holds: round of the broadcast that the client holds.
        since: round of the one that it was coded against, None if it was sent in full.
        trend: mean of the client's last steps, None if unknown.
    """

    holds: int
    since: int | None
    trend: ModelState | None


@dataclass(eq=False)
class Links:
    """The server's side of all links.

    Attributes:
        layout: the network's layout.
        clients: number of clients there are.
        memory: bytes that earlier broadcasts may take, and as many that the trends of all clients may take.
        trends: whether updates are coded against how clients have been moving.
    """

    layout: ParameterLayout
    clients: int
    memory: int
    trends: bool = True
    _sent: dict[int, ModelState] = field(default_factory=dict)
    _links: dict[int, _Link] = field(default_factory=dict)
    _open: dict[int, _Link] = field(default_factory=dict)
    _plain: bytes | None = None
    _reference: Reference = field(init=False)
    _remembers: bool = False

    def broadcast(self, t: int, model: ModelState, clients: Iterable[int]) -> dict[int, bytes]:
        """Encode round t's broadcast for each client, once for all that hold the same."""
        self._sent[t] = ModelState.of_values(model.values, model.mask, model.buffers)
        self._remembers = self.trends and 4 * model.nonzero * self.clients <= self.memory
        self._reference = Reference(self._sent[t], self.layout)
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
            key = (link.holds, link.since)
            if key not in encoded:
                encoded[key] = encode(self._message(), self.layout, self._held_by(link))
            messages[k] = encoded[key]
            self._open[k] = _Link(t, link.holds, link.trend if self._remembers else None)
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
        return self._reference.with_trend(self._open[client].trend)

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

    def _held_by(self, link: _Link) -> Reference:
        model = self._sent[link.holds]
        drift = None if link.since is None else step_between(self._sent[link.since], model)
        return Reference(model, self.layout, drift)

    def _evict(self) -> None:
        """Drop broadcasts that nobody holds, and the oldest ones while they take too much memory."""
        held = {r for link in self._links.values() for r in (link.holds, link.since)}
        for r in list(self._sent)[:-1]:
            if r not in held:
                del self._sent[r]
        while len(self._sent) > 1 and sum(_size(model) for model in self._sent.values()) > self.memory:
            oldest = next(iter(self._sent))
            del self._sent[oldest]
            for k in [k for k, link in self._links.items() if oldest in (link.holds, link.since)]:
                self.forget(k)


def _size(model: ModelState) -> int:
    return 4 * len(model.values) + len(model.mask)
