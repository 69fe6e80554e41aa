"""The round loop: broadcast, collect, merge, purge, evaluate, record.

The engine knows neither how bytes travel (:mod:`.transport`) nor what a method does with them
(:mod:`fedsparsify.algorithms`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ..algorithms import Method
from ..errors import ArgumentError, FedSparsifyError, TooFewClientsError, WireError
from ..layout import ParameterLayout
from ..plugins import describe
from ..randomness import derive
from ..state import ClientUpdate, ModelState, ServerState
from ..wire import Kind, decode, open_message
from .alignment import Alignment
from .links import Links
from .transport import Reply, Transport

__all__ = [
    "Evaluate",
    "Federation",
    "Observer",
    "Record",
    "Round",
    "Terms",
    "check_federation",
    "next_state",
    "participants",
]

# Sums of examples over clients stay exact in float64 and int64.
_MOST_EXAMPLES = 2**32

# Names in a checkpoint's memory that are the clients', not the method's.
_CARRIED = "client "

Evaluate = Callable[[ModelState], Mapping[str, Any]]
"""Merged model -> ``accuracy`` (or ``mae``) and ``loss`` on the whole test set, by group too where there are groups."""

Record = dict[str, Any]
"""One line of ``metrics.jsonl``."""


class State(Protocol):
    """What a round leaves behind: a :class:`~fedsparsify.state.ServerState`, or a locked one under encryption."""

    @property
    def round(self) -> int:
        """The last finished round."""
        ...


class Observer(Protocol):
    """Is told what happens: the run directory, the progress display, TensorBoard."""

    def client_done(self, round: int, done: int, total: int) -> None:
        """``done`` of ``total`` participants have answered in ``round``."""
        ...

    def round_done(self, state: Any, record: Record) -> None:
        """A round is finished; ``state`` is what the next one starts from, see :class:`State`."""
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
        link_memory: bytes that the server may spend on remembering what clients hold, see :class:`.links.Links`.
        trends: whether updates are coded against how clients have been moving; of no use where they are rounded.
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
    link_memory: int = 1 << 29
    trends: bool = True

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
        links = Links(self.layout, self.clients, self.link_memory, self.trends)
        if state.round == 0 and not recorded:
            started = time.perf_counter()
            round = Round(self, links, 0, state.model, [])
            if self.method.starts != "dense":
                state = self._begin(state, round, observers)
            _tell(observers, state, self._record(state, started, round))
        carried = {name: vector for name, vector in state.memory.items() if name.startswith(_CARRIED)}
        self.transport.restore({name.removeprefix(_CARRIED): vector for name, vector in carried.items()})
        # A method sees its own memory only; the clients' is added to what is kept of a round.
        state = replace(state, memory={name: v for name, v in state.memory.items() if name not in carried})
        for t in range(state.round + 1, self.rounds + 1):
            started = time.perf_counter()
            chosen = participants(self.seed, t, self.clients, self.participation)
            round = Round(self, links, t, state.model, chosen)
            state = self._update(state, round, observers)
            carried = {_CARRIED + name: vector for name, vector in self.transport.carried().items()}
            kept = replace(state, memory={**state.memory, **carried})
            _tell(observers, kept, self._record(kept, started, round))
        return state

    def _begin(self, state: ServerState, round: Round, observers: Sequence[Observer]) -> ServerState:
        """Carry out round 0; where one client is asked and fails, the next one is."""
        if self.method.starts == "one client":
            asked: list[int] = []
            for k in derive(self.seed, "participants").permutation(self.clients).tolist():
                asked.append(k)
                round.chosen = [k]
                try:
                    return self._update(state, round, observers)
                except TooFewClientsError:
                    if len(asked) == self.clients:
                        raise
                finally:
                    round.chosen = asked
        if self.method.starts == "participants":
            round.chosen = participants(self.seed, 0, self.clients, self.participation)
        return self._update(state, round, observers)

    def _update(self, state: ServerState, round: Round, observers: Sequence[Observer]) -> ServerState:
        """Carry out a round's exchange and return the method's next state."""

        def tell(done: int) -> None:
            for observer in observers:
                observer.client_done(round.t, done, len(round.chosen))

        replies = self._exchange(round, round.links.broadcast(round.t, state.model, round.chosen))
        updates = round.usable_updates(_in_order(replies, round.chosen, tell))
        return next_state(self.method, self.layout, state, updates, round.t)

    def _exchange(self, round: Round, broadcasts: Mapping[int, bytes]) -> Iterator[Reply]:
        """Send broadcasts and yield the replies; who lacks what a broadcast refers to gets it in full, once."""
        lacking: dict[int, bytes] = {}
        round.bytes_down += sum(map(len, broadcasts.values()))
        for reply in self.transport.exchange(round.t, broadcasts):
            round.bytes_up += len(reply.payload or b"")
            if self._asks_for_all(reply, round.t):
                lacking[reply.client] = round.links.plain(reply.client)
            else:
                yield reply
        if lacking:
            round.bytes_down += sum(map(len, lacking.values()))
            for reply in self.transport.exchange(round.t, lacking):
                round.bytes_up += len(reply.payload or b"")
                yield reply

    def _asks_for_all(self, reply: Reply, t: int) -> bool:
        """Whether a reply is a sound request for a broadcast in full; anything else is judged with the updates."""
        try:
            message = decode(reply.payload or b"", self.layout, expected=Kind.REQUEST)
        except WireError:
            return False
        return (message.round, message.client) == (t, reply.client)

    def _record(self, state: ServerState, started: float, round: Round) -> Record:
        masks = self.layout.split(state.model.mask).values()
        return {
            "round": state.round,
            **finite(self.evaluate(state.model)),
            "sparsity": state.model.sparsity,
            "nonzero": state.model.nonzero,
            "participants": list(round.chosen),
            "failures": [{"client": client, "reason": why} for client, why in round.failures],
            "bytes_down": round.bytes_down,
            "bytes_up": round.bytes_up,
            "seconds_train": round.seconds_train,
            "seconds_round": time.perf_counter() - started,
            "client_drift": round.alignment.client_drift,
            "mask_overlap": round.alignment.mask_overlap,
            "train_loss": round.train_loss / round.examples if round.examples else None,
            "backends": round.backends,
            "layers_nonzero": [int(np.count_nonzero(mask)) for mask in masks],
        }


def next_state(
    method: Method, layout: ParameterLayout, before: ServerState, updates: Iterator[ClientUpdate], t: int
) -> ServerState:
    """Call the server's part of a method, which may be a user's, and judge its result before anything relies on it.

    Args:
        method: the federated method.
        layout: the network's layout.
        before: the state after round ``t`` - 1.
        updates: usable updates in client order, all of which the method must read.
        t: the round.

    Raises:
        ArgumentError: the method failed, or returned what it must not.
    """
    here = f"method {method.name}, round {t}: server_update"
    try:
        state = method.server_update(before, updates, t)
    except FedSparsifyError:
        raise
    except Exception as error:
        raise ArgumentError(f"{here} failed with {describe(error)}") from error
    if not isinstance(state, ServerState):
        raise ArgumentError(f"{here} returned a {type(state).__name__}; it must return a ServerState")
    if state.round != t:
        raise ArgumentError(f"{here} returned the state of round {state.round}; it must be ServerState({t}, ...)")
    for _ in updates:
        raise ArgumentError(f"{here} left updates unread; it must go through all of them")
    model, n = state.model, layout.n
    vectors = {"model.w": (model.w, n), "model.buffers": (model.buffers, layout.b)}
    vectors |= {f'memory["{name}"]': (vector, n) for name, vector in state.memory.items()}
    for name, (vector, size) in vectors.items():
        if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.shape != (size,):
            raise ArgumentError(f"{here}: {name} must be float32[{size}]")
    if model.mask.dtype != np.bool_ or model.mask.shape != (n,):
        raise ArgumentError(f"{here}: model.mask must be bool[{n}]")
    if np.any(model.w[~model.mask]):
        raise ArgumentError(f"{here}: model.w is not 0 at all pruned positions; ModelState.under(mask) makes it so")
    if not method.regrows and np.any(model.mask & ~before.model.mask):
        raise ArgumentError(f"{here} brings pruned parameters back; say Method(..., regrows=True) if it may")
    if any(name.startswith(_CARRIED) for name in state.memory):
        raise ArgumentError(f'{here}: names of memory that begin with "{_CARRIED}" are the clients\'')
    return state


def finite(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures, and figures within, with None for what JSON has no number for."""
    return {
        name: finite(value) if isinstance(value, Mapping) else value if math.isfinite(value) else None
        for name, value in figures.items()
    }


def participants(seed: int, round: int, clients: int, participation: float) -> list[int]:
    """Draw who takes part in a round, in ascending order; at least one client does.

    >>> participants(seed=1, round=1, clients=3, participation=1.0)
    [0, 1, 2]
    """
    count = taking_part(clients, participation)
    if count >= clients:
        return list(range(clients))
    drawn = derive(seed, "participants", round=round).choice(clients, count, replace=False)
    return sorted(int(k) for k in drawn)


def taking_part(clients: int, participation: float) -> int:
    """Return how many clients take part in a round."""
    return min(clients, max(1, int(np.floor(participation * clients + 0.5))))


class Terms(Protocol):
    """What replies are judged by; a :class:`Federation` has it, and so may a loop that is not ours."""

    @property
    def method(self) -> Method:
        """The federated method."""
        ...

    @property
    def layout(self) -> ParameterLayout:
        """The network's layout."""
        ...

    @property
    def min_clients(self) -> int:
        """Fewest usable updates that a round needs."""
        ...


class Round:
    """One round's replies, and what is counted while the merge consumes them.

    Args:
        terms: what replies are judged by.
        links: what this round's broadcasts were encoded with.
        t: the round.
        broadcast: the model that was broadcast.
        chosen: the clients that take part, ascending.
    """

    def __init__(self, terms: Terms, links: Links, t: int, broadcast: ModelState, chosen: Sequence[int]) -> None:
        self._federation = terms
        self._broadcast = broadcast
        self.links = links
        self.t = t
        self.chosen = chosen
        self.failures: list[tuple[int, str]] = []
        self.alignment = Alignment(broadcast)
        self.bytes_down = 0
        self.bytes_up = 0
        self.seconds_train = 0.0
        self.train_loss = 0.0
        self.examples = 0
        self.backends = {"native": 0, "torch": 0}

    def usable_updates(self, replies: Iterable[Reply]) -> Iterator[ClientUpdate]:
        """Decode one update at a time, in client order, and leave out what cannot be used.

        Raises:
            TooFewClientsError: fewer than ``min_clients`` could be used.
        """
        usable = 0
        for reply in replies:
            k = reply.client
            try:
                update, proves = self._decode(reply)
            except WireError as error:
                self.links.forget(k)
                self.failures.append((k, str(error)))
                continue
            if proves:
                self.links.confirm(k, update.model)
            else:  # who refers to nothing need not hold anything
                self.links.forget(k)
            usable += 1
            self.alignment.add(update.model)
            self.seconds_train += update.metrics.get("seconds", 0.0)
            if "loss" in update.metrics:  # else the client only gave scores
                self.train_loss += update.metrics["loss"] * update.num_examples
                self.examples += update.num_examples
                self.backends["native" if update.metrics.get("native") else "torch"] += 1
            yield update
            del update  # one at a time
        if usable < min(self._federation.min_clients, len(self.chosen)):  # before training it may be one that is asked
            raise too_few("update", self.t, usable, self.chosen, self._federation.min_clients, self.failures)

    def _decode(self, reply: Reply) -> tuple[ClientUpdate, bool]:
        """Return the update, and whether it proves that the client holds the broadcast."""
        if reply.payload is None:
            raise WireError(reply.failure)
        head = open_message(reply.payload)[0]  # whose and when first: it says more than that a reference is stale
        if head.kind != Kind.UPDATE:
            raise WireError(f"header: an update was expected, not a message of kind {head.kind.name.lower()}")
        if head.round != self.t:
            raise WireError(f"header: the update is of round {head.round}, but this is round {self.t}")
        if head.client != reply.client:
            raise WireError(f"header: the update says that it comes from client {head.client}")
        if head.num_examples > _MOST_EXAMPLES:
            raise WireError(f"header: {head.num_examples} examples are more than any client has")
        message = decode(reply.payload, self._federation.layout, self.links.reference(reply.client), Kind.UPDATE)
        model, allowed = message.model, self._broadcast.mask
        method = self._federation.method
        if not method.regrows and model.mask is not allowed:
            regrown = len(model.values) - int(np.count_nonzero(model.mask & allowed))
            if regrown:
                raise WireError(f"mask: {regrown} parameters that were pruned before have come back")
        due = method.sends(self.t)
        if tuple(message.memory) != due:
            raise WireError(f"memory: vectors {list(message.memory)} where {list(due)} are due")
        update = ClientUpdate(
            *(message.client, message.round, model, message.num_examples), message.metrics, message.memory
        )
        return update, message.refers


def too_few(
    what: str, t: int, usable: int, chosen: Sequence[int], least: int, failures: Sequence[tuple[int, str]]
) -> TooFewClientsError:
    """Return the error of a round in which fewer than ``least`` participants gave what can be used."""
    reasons = "; ".join(f"client {client}: {why}" for client, why in failures[:3])
    return TooFewClientsError(
        f"round {t}: {usable} of {len(chosen)} participants returned a usable {what}, but federation.min_clients ="
        f" {least} ({reasons or 'too few take part'}): mend the clients, then resume"
    )


def _in_order(replies: Iterable[Reply], chosen: Sequence[int], tell: Callable[[int], None]) -> Iterator[Reply]:
    """Yield replies in the order of ``chosen``, each as soon as it and all before it are there: others still train."""
    early: dict[int, Reply] = {}
    coming, done = iter(replies), 0
    for k in chosen:
        while k not in early:
            reply = next(coming)
            early[reply.client] = reply
            done += 1
            tell(done)
        yield early.pop(k)


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
    most = taking_part(clients, participation)
    if not 1 <= min_clients <= most:
        raise ArgumentError(
            f"federation.min_clients = {min_clients} must be from 1 to {most}, the clients that take part in a round"
        )
