"""The round loop: broadcast, collect, merge, purge, evaluate, record.

The engine knows neither how bytes travel (:mod:`.transport`) nor what a method does with them
(:mod:`fedsparsify.algorithms`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..algorithms import Method
from ..errors import ArgumentError, TooFewClientsError, WireError
from ..layout import ParameterLayout
from ..randomness import derive
from ..state import ClientUpdate, Mask, ModelState, ServerState
from ..wire import Kind, Message, decode, encode
from .alignment import Alignment
from .transport import Reply, Transport

__all__ = ["Evaluate", "Federation", "Observer", "Record", "check_federation", "participants"]

# Sums of examples over clients stay exact in float64 and int64.
_MOST_EXAMPLES = 2**32

Evaluate = Callable[[ModelState], Mapping[str, float]]
"""Merged model -> ``accuracy`` (or ``mae``) and ``loss`` on the whole test set."""

Record = dict[str, Any]
"""One line of ``metrics.jsonl``."""


class Observer(Protocol):
    """Is told what happens: the run directory, the progress display, TensorBoard."""

    def client_done(self, round: int, done: int, total: int) -> None:
        """``done`` of ``total`` participants have answered in ``round``."""
        ...

    def round_done(self, state: ServerState, record: Record) -> None:
        """A round is finished; ``state`` is what the next one starts from."""
        ...


@dataclass(frozen=True)
class Federation:
    """A federation that can be run from any state.

    Attributes:
        method: the federated method.
        layout: the network's layout.
        transport: reaches the clients.
        evaluate: judges a merged model.
        clients: number of clients there are.
        rounds: T, the last round.
        seed: fixes who takes part.
        participation: fraction of the clients that take part in a round, in (0, 1].
        min_clients: fewest usable updates that a round needs.
    """

    method: Method
    layout: ParameterLayout
    transport: Transport
    evaluate: Evaluate
    clients: int
    rounds: int
    seed: int
    participation: float = 1.0
    min_clients: int = 1

    def run(self, state: ServerState, observers: Sequence[Observer], *, recorded: bool = False) -> ServerState:
        """Run all rounds after ``state.round`` and return the last state.

        Args:
            state: where to start; round 0 is the initial model.
            observers: are told of every round, in this order.
            recorded: whether round 0 was recorded before; else the initial model is evaluated and recorded first.

        Raises:
            TooFewClientsError: fewer than ``min_clients`` usable updates came back; observers have seen all rounds
                before.
        """
        if state.round == 0 and not recorded:
            started = time.perf_counter()
            _tell(observers, state, self._record(state, started, _Round(self, state, [])))
        for t in range(state.round + 1, self.rounds + 1):
            started = time.perf_counter()
            chosen = participants(self.seed, t, self.clients, self.participation)
            broadcast = encode(Message(Kind.BROADCAST, t, state.model), self.layout)

            replies: dict[int, Reply] = {}
            for reply in self.transport.exchange(t, chosen, broadcast):
                replies[reply.client] = reply
                for observer in observers:
                    observer.client_done(t, len(replies), len(chosen))

            round = _Round(self, state, [replies[k] for k in chosen])
            state = self.method.server_update(state, round.usable_updates(), t)
            round.bytes_down = len(broadcast) * len(chosen)
            _tell(observers, state, self._record(state, started, round))
        return state

    def _record(self, state: ServerState, started: float, round: _Round) -> Record:
        masks = self.layout.split(state.model.mask).values()
        figures = {k: v if math.isfinite(v) else None for k, v in self.evaluate(state.model).items()}
        return {
            "round": state.round,
            **figures,
            "sparsity": state.model.sparsity,
            "nonzero": state.model.nonzero,
            "participants": [reply.client for reply in round.replies],
            "failures": [{"client": client, "reason": why} for client, why in round.failures],
            "bytes_down": round.bytes_down,
            "bytes_up": sum(len(reply.payload or b"") for reply in round.replies),
            "seconds_train": round.seconds_train,
            "seconds_round": time.perf_counter() - started,
            "client_drift": round.alignment.client_drift,
            "mask_overlap": round.alignment.mask_overlap,
            "train_loss": round.train_loss / round.examples if round.examples else None,
            "backends": round.backends,
            "layers_nonzero": [int(np.count_nonzero(mask)) for mask in masks],
        }


def participants(seed: int, round: int, clients: int, participation: float) -> list[int]:
    """Draw who takes part in a round, in ascending order; at least one client does.

    >>> participants(seed=1, round=1, clients=3, participation=1.0)
    [0, 1, 2]
    """
    count = _taking_part(clients, participation)
    if count >= clients:
        return list(range(clients))
    drawn = derive(seed, "participants", round=round).choice(clients, count, replace=False)
    return sorted(int(k) for k in drawn)


def _taking_part(clients: int, participation: float) -> int:
    return min(clients, max(1, int(np.floor(participation * clients + 0.5))))


class _Round:
    """One round's replies, and what is counted while the merge consumes them."""

    def __init__(self, federation: Federation, state: ServerState, replies: Sequence[Reply]) -> None:
        self._federation = federation
        self._t = state.round + 1
        self._mask: Mask = state.model.mask
        self.replies = replies
        self.failures: list[tuple[int, str]] = []
        self.alignment = Alignment(state.model.w)
        self.bytes_down = 0
        self.seconds_train = 0.0
        self.train_loss = 0.0
        self.examples = 0
        self.backends = {"native": 0, "torch": 0}

    def usable_updates(self) -> Iterator[ClientUpdate]:
        """Decode one update at a time, in client order, and leave out what cannot be used."""
        usable = 0
        for reply in self.replies:
            try:
                update = self._decode(reply)
            except WireError as error:
                self.failures.append((reply.client, str(error)))
                continue
            usable += 1
            self.alignment.add(update.model.w, update.model.mask)
            self.seconds_train += update.metrics.get("seconds", 0.0)
            self.train_loss += update.metrics.get("loss", 0.0) * update.num_examples
            self.examples += update.num_examples
            self.backends["native" if update.metrics.get("native") else "torch"] += 1
            yield update
        if usable < self._federation.min_clients:
            reasons = "; ".join(f"client {client}: {why}" for client, why in self.failures[:3])
            raise TooFewClientsError(
                f"round {self._t}: {usable} of {len(self.replies)} participants returned a usable update, but"
                f" federation.min_clients = {self._federation.min_clients} ({reasons or 'too few take part'}):"
                " mend the clients, then resume"
            )

    def _decode(self, reply: Reply) -> ClientUpdate:
        if reply.payload is None:
            raise WireError(reply.failure)
        message = decode(reply.payload, self._federation.layout, base=self._mask)
        if message.kind != Kind.UPDATE:
            raise WireError(f"header: an update was expected, not a message of kind {message.kind.name.lower()}")
        if message.round != self._t:
            raise WireError(f"header: the update is of round {message.round}, but this is round {self._t}")
        if message.client != reply.client:
            raise WireError(f"header: the update says that it comes from client {message.client}")
        if message.num_examples > _MOST_EXAMPLES:
            raise WireError(f"header: {message.num_examples} examples are more than any client has")
        regrown = int(np.count_nonzero(message.model.mask & ~self._mask))
        if regrown:
            raise WireError(f"mask: {regrown} parameters that were pruned before have come back")
        return ClientUpdate(message.client, message.round, message.model, message.num_examples, message.metrics)


def _tell(observers: Sequence[Observer], state: ServerState, record: Record) -> None:
    for observer in observers:
        observer.round_done(state, record)


def check_federation(clients: int, participation: float, min_clients: int) -> None:
    """Refuse settings under which no round could succeed.

    Raises:
        ArgumentError: a value is out of its range.
    """
    if clients < 1:
        raise ArgumentError(f"federation.clients = {clients} must be at least 1")
    if not 0 < participation <= 1:
        raise ArgumentError(f"federation.participation = {participation} must be more than 0 and at most 1")
    taking_part = _taking_part(clients, participation)
    if not 1 <= min_clients <= taking_part:
        raise ArgumentError(
            f"federation.min_clients = {min_clients} must be from 1 to {taking_part}, the clients that take part in a"
            " round"
        )
