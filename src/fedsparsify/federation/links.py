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
    return ModelState.of_values(step, start.mask)


@dataclass(eq=False)
class _Link:
    """What the server knows of one client.

    Attributes:
        round: of the broadcast that the client holds.
        reference: that broadcast and the step that led to it; one object for all clients that hold the same.
        trend: mean of the client's last steps, None if unknown.
    """

    round: int
    reference: Reference
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
    _links: dict[int, _Link] = field(default_factory=dict)
    _open: dict[int, _Link] = field(default_factory=dict)
    _plain: bytes | None = None
    _message: Message = field(init=False)
    _alone: Reference = field(init=False)

    def broadcast(self, t: int, model: ModelState, clients: Iterable[int]) -> dict[int, bytes]:
        """Encode round t's broadcast for each client, once for all that hold the same."""
        self._evict()
        survivors = ModelState.of_values(model.values, model.mask, model.buffers)
        remembers = self.trends and 4 * model.nonzero * self.clients <= self.memory
        self._message = Message(Kind.BROADCAST, t, survivors, remember=remembers)
        self._alone = Reference(survivors, self.layout)
        self._plain, self._open = None, {}
        encoded: dict[int, tuple[bytes, Reference]] = {}
        messages = {}
        for k in clients:
            link = self._links.get(k)
            if link is None:
                messages[k] = self.plain(k)
                continue
            held = link.reference
            if id(held) not in encoded:
                drift = step_between(held.model, survivors)
                message = encode(self._message, self.layout, held)
                encoded[id(held)] = message, Reference(survivors, self.layout, drift)
            messages[k], reference = encoded[id(held)]
            self._open[k] = _Link(t, reference, link.trend if remembers else None)
        return messages

    def plain(self, client: int) -> bytes:
        """Return this round's broadcast for a client that holds nothing."""
        self.forget(client)
        if self._plain is None:
            self._plain = encode(self._message, self.layout)
        self._open[client] = _Link(self._message.round, self._alone, None)
        return self._plain

    def reference(self, client: int) -> Reference:
        """Return what the client's update of this round is coded against."""
        link = self._open[client]
        return link.reference.with_trend(link.trend)

    def confirm(self, client: int, update: ModelState) -> None:
        """Note that a client's update has arrived: it holds this round's broadcast."""
        link = self._open.pop(client)
        if self._message.remember:
            link.trend = mean_step(link.trend, self._message.model, update)
        self._links[client] = link

    def forget(self, client: int) -> None:
        """Note that nothing is known of a client any more."""
        self._links.pop(client, None)
        self._open.pop(client, None)

    def _evict(self) -> None:
        """Keep of earlier broadcasts what cannot be computed again, and forget the oldest while they take too much."""
        while held := {id(link.reference): link for link in self._links.values()}:
            models = {id(link.reference.model): link.reference.model for link in held.values()}
            steps = sum(4 * link.reference.model.nonzero for link in held.values())
            if sum(map(_size, models.values())) + steps <= self.memory:
                break
            oldest = min(link.round for link in held.values())
            for k in [k for k, link in self._links.items() if link.round == oldest]:
                self.forget(k)
        for link in held.values():
            link.reference.release()


def _size(model: ModelState) -> int:
    return 4 * len(model.values) + len(model.mask)
