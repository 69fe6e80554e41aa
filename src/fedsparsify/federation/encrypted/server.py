"""The round loop of a server that sees neither an update nor the model: ask, add up, forward.

A round is two exchanges. ``train``: the participants train on the model that they hold, and send encrypted changes and
their figures. ``merge``: the server adds up the changes it could use and sends everybody the sum; each makes the next
model of it and says its digest. One of them also evaluates the model, and sends it back locked, for participants that
do not hold it and for the checkpoint: the server stores what it cannot read.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...algorithms import Method
from ...errors import FederationError, WireError
from ...layout import ParameterLayout
from ...secure import AnyScheme, Cipher, Limbs
from ..alignment import overlap
from ..engine import Observer, Record, participants, too_few
from ..transport import Reply, Transport, clean
from .client import read_mask, write_mask
from .messages import Answer, AnswerKind, Metric, Order, read, value_of, write
from .state import LockedState

__all__ = ["EncryptedFederation"]


@dataclass(eq=False)
class _Round:
    """What is counted of one round."""

    t: int
    chosen: list[int]
    started: float = field(default_factory=time.perf_counter)
    failures: list[tuple[int, str]] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0
    ciphertext_down: int = 0
    ciphertext_up: int = 0
    seconds_add: float = 0.0
    seconds_decrypt: float = 0.0
    updates: dict[int, Answer] = field(default_factory=dict)
    overlap: float | None = None
    changed: set[int] = field(default_factory=set)


@dataclass(frozen=True, eq=False)
class _Question:
    """What some clients are asked in one exchange.

    Attributes:
        kind: of the orders.
        due: kind of the answers.
        base: the state that the orders start from.
        after: what is known of the state that they lead to.
        clients: who is asked, ascending.
        parts: of the orders.
        attempt: of the sum.
    """

    kind: Literal["begin", "train", "merge"]
    due: AnswerKind
    base: LockedState
    after: LockedState
    clients: Sequence[int]
    parts: Mapping[str, bytes] = field(default_factory=dict)
    attempt: str | None = None


@dataclass(frozen=True)
class EncryptedFederation:
    """A federation under encryption, to be run from any state.

    Attributes:
        method: the federated method, whose ``merges`` is not ``"models"``.
        layout: the network's layout.
        transport: reaches the clients.
        cipher: how they encrypt.
        scheme: with which parameters.
        metric: what judges tell of a model, ``accuracy`` or ``mae``.
        clients: number of clients there are.
        rounds: T, the last round.
        seed: fixes who takes part.
        participation: fraction of the clients that take part in a round, in (0, 1].
        min_clients: fewest usable updates that a round needs, at least 2.
    """

    method: Method
    layout: ParameterLayout
    transport: Transport
    cipher: Cipher
    scheme: AnyScheme
    metric: Metric
    clients: int
    rounds: int
    seed: int
    participation: float = 1.0
    min_clients: int = 2

    def run(self, state: LockedState | None, observers: Sequence[Observer]) -> LockedState:
        """Run all rounds after ``state.round``, from the initial model where it is None, and return the last state.

        Raises:
            TooFewClientsError: fewer than ``min_clients`` usable updates came back.
            FederationError: clients disagree about the merged model, or refuse the sum: it was altered.
        """
        if state is None:
            state = self._begin(observers)
        for t in range(state.round + 1, self.rounds + 1):
            state = self._round(state, t, observers)
        return state

    def _begin(self, observers: Sequence[Observer]) -> LockedState:
        """Ask round 1's participants who they are, and for the initial model."""
        round = _Round(0, participants(self.seed, 1, self.clients, self.participation))
        mask = np.ones(self.layout.n, np.bool_) if self.method.merges == "vote" else None
        nobody = LockedState(0, secrets.token_hex(16), "", "", (), b"", {}, mask)
        return self._agreed(round, _Question("begin", "ready", nobody, nobody, round.chosen), observers)

    def _round(self, before: LockedState, t: int, observers: Sequence[Observer]) -> LockedState:
        round = _Round(t, participants(self.seed, t, self.clients, self.participation))
        before, chosen = self._introduced(before, round)
        limbs = Limbs(self.scheme.plain_modulus, self.scheme.participants)
        count = before.nonzero + limbs.each * self.layout.b
        adder = self.cipher.adder(self.scheme, round=t, count=count, key=bytes.fromhex(before.key))
        votes = np.zeros(self.layout.n, np.int32)
        masks: dict[int, NDArray[np.uint8]] = {}
        attempt = secrets.token_hex(16)
        training = _Question("train", "update", before, before, chosen, attempt=attempt)
        for k, (answer, parts) in self._answers(round, training, observers=observers):
            try:
                mask = None
                if before.mask is not None:
                    mask = read_mask(parts.get("mask", b""), before.mask, self.layout)
                added = time.thread_time()
                adder.take(k, parts.get("values", b""))
                round.seconds_add += time.thread_time() - added
            except WireError as error:
                round.failures.append((k, clean(str(error))))
                continue
            if mask is not None:
                votes += mask
                masks[k] = np.packbits(mask)
            round.ciphertext_up += len(parts["values"])
            round.updates[k] = answer
        self._check_enough(round, len(round.updates))
        added = time.thread_time()
        parts = {"sum": adder.sum()}
        round.seconds_add += time.thread_time() - added
        after = before
        if before.mask is not None:
            voted = 2 * votes >= len(round.updates)
            after = replace(before, mask=voted)
            parts["mask"] = write_mask(voted, before.mask, self.layout)
            round.overlap = overlap([masks[k] for k in sorted(masks)])  # they came in any order
        merging = _Question("merge", "merged", before, after, sorted(round.updates), parts, attempt)
        return self._agreed(round, merging, observers)

    def _introduced(self, before: LockedState, round: _Round) -> tuple[LockedState, list[int]]:
        """Ask participants who have not been asked before for their number of examples; return who can take part."""
        strangers = [k for k in round.chosen if k not in before.examples]
        if not strangers:
            return before, round.chosen
        examples = dict(before.examples)
        for k, (answer, _) in self._answers(round, _Question("begin", "ready", before, before, strangers)):
            if answer.key != before.key:
                round.failures.append((k, "its key is another one than the others': give it a copy of theirs"))
            elif answer.examples < 1:
                round.failures.append((k, "it has no examples"))
            else:
                examples[k] = answer.examples
        return replace(before, examples=examples), [k for k in round.chosen if k in examples]

    def _agreed(self, round: _Round, question: _Question, observers: Sequence[Observer]) -> LockedState:
        """Ask for the round's model, and return the state on which clients agree, which one of them has judged."""
        answers: dict[int, tuple[Answer, dict[str, bytes]]] = {}
        left, judge = list(question.clients), question.clients[0]
        while judge in left:
            answers |= dict(self._answers(round, replace(question, clients=left if not answers else [judge]), judge))
            self._check_enough(round, len(answers))
            self._check_agreement(round, answers)
            found, returned = answers.get(judge, (None, {}))
            if found is not None and found.test is not None and "model" in returned:
                break
            left = [k for k in sorted(answers) if k > judge]
            judge = min(left, default=-1)
        else:
            raise FederationError(
                f"round {round.t}: no client has evaluated the merged model and sent it back, as each was asked to:"
                " see their logs, then resume"
            )
        assert found.key is not None and found.state is not None  # as _check_model has seen to
        known = question.after
        examples = {k: n for k, n in known.examples.items() if k not in round.changed}
        if question.kind == "begin":
            examples = {k: answer.examples for k, (answer, _) in answers.items()}
        layers = tuple(found.layers)
        state = LockedState(round.t, known.run, found.key, found.state, layers, returned["model"], examples, known.mask)
        round.seconds_decrypt = sum(value_of(answer.seconds) for answer, _ in answers.values())
        record = self._record(state, round, known.examples, found)
        for observer in observers:
            observer.round_done(state, record)
        return state

    def _check_model(self, answer: Answer, after: LockedState) -> None:
        """Refuse a description of a model that the round cannot have led to."""
        if answer.key is None or answer.state is None or answer.examples < 1:
            raise WireError("message: key, state and a number of examples are due")
        most: Sequence[int] = [slot.size for slot in self.layout.parameters]
        if after.mask is not None:
            most = [int(np.count_nonzero(mask)) for mask in self.layout.split(after.mask).values()]
        elif after.layers and not self.method.regrows:
            most = after.layers
        if answer.test is not None and answer.test.metric != self.metric:
            raise WireError(f"message: test: it tells {answer.test.metric} where {self.metric} is due")
        fits = len(answer.layers) == len(most) and all(k <= n for k, n in zip(answer.layers, most, strict=True))
        if not fits or (after.mask is not None and list(answer.layers) != list(most)):
            raise WireError("message: layers: so many parameters cannot be left")

    def _check_agreement(self, round: _Round, answers: Mapping[int, tuple[Answer, Any]]) -> None:
        for what, remedy, said in (
            (
                "key",
                "give all of them the same key file, then start a new run",
                {k: (answer.key,) for k, (answer, _) in answers.items()},
            ),
            (
                "merged model",
                "look for what differs there (settings, data, versions, hardware), then resume",
                {k: (answer.state, *answer.layers) for k, (answer, _) in answers.items()},
            ),
        ):
            usual = Counter(said.values()).most_common(1)[0][0]
            others = [str(k) for k, value in sorted(said.items()) if value != usual]
            if others:
                raise FederationError(
                    f"round {round.t}: clients {', '.join(others)} have another {what} than the other"
                    f" {len(said) - len(others)}: {remedy}"
                )

    def _check_enough(self, round: _Round, usable: int) -> None:
        if usable < self.min_clients:
            raise too_few("answer", round.t, usable, round.chosen, self.min_clients, round.failures)

    def _answers(
        self, round: _Round, question: _Question, judge: int | None = None, observers: Sequence[Observer] = ()
    ) -> Iterator[tuple[int, tuple[Answer, dict[str, bytes]]]]:
        """Send orders and yield sound answers of the kind that is due; who lacks the model is sent it, once."""
        base, parts = question.base, question.parts
        known = [(k, base.examples[k]) for k in round.chosen if k in base.examples]

        head = Order(
            kind=question.kind,
            round=round.t,
            run=base.run,
            state=base.state or None,
            examples=known if question.kind != "begin" else [],
            attempt=question.attempt,
            judge=judge,
        )
        again: dict[int, bytes] = {}
        with_model = b""
        done = 0
        for asked in (dict.fromkeys(question.clients, write(head, parts)), again):
            for reply in self._exchange(round, asked, parts):
                answer = self._read(round, reply, question, last=asked is again)
                if answer is not None and answer[0].kind == "lacking":
                    with_model = with_model or write(head, {**parts, "model": base.model})
                    again[reply.client] = with_model
                    continue
                done += 1
                for observer in observers:
                    observer.client_done(round.t, done, len(round.chosen))
                if answer is not None:
                    yield reply.client, answer

    def _exchange(self, round: _Round, orders: Mapping[int, bytes], parts: Mapping[str, bytes]) -> Iterator[Reply]:
        if not orders:
            return
        round.bytes_down += sum(map(len, orders.values()))
        round.ciphertext_down += len(orders) * len(parts.get("sum", b""))
        for reply in self.transport.exchange(round.t, orders):
            round.bytes_up += len(reply.payload or b"")
            yield reply

    def _read(
        self, round: _Round, reply: Reply, question: _Question, *, last: bool
    ) -> tuple[Answer, dict[str, bytes]] | None:
        """Judge one reply; None if it cannot be used."""
        k = reply.client
        try:
            if reply.payload is None:
                raise WireError(reply.failure)
            answer, parts = read(reply.payload, Answer)
            if (answer.round, answer.client) != (round.t, k):
                raise WireError(f"message: it is of client {answer.client} and round {answer.round}")
            if answer.kind == "refused":
                raise FederationError(
                    f"round {round.t}: client {k} refuses the sum, which is not what clients have encrypted: find out"
                    " who altered it, make a new key (fedsparsify keys new) and start a new run"
                )
            if answer.kind == "changed":
                round.changed.add(k)
                raise WireError(
                    f"it has {answer.examples} examples and had {question.base.examples.get(k)}: it takes part again"
                    " from the next round on"
                )
            if answer.kind != question.due and (last or answer.kind != "lacking"):
                raise WireError(f"message: its kind is {answer.kind} where {question.due} is due")
            if answer.kind == "merged" or (answer.kind == "ready" and round.t == 0):
                self._check_model(answer, question.after)
        except WireError as error:
            round.failures.append((k, clean(str(error))))
            return None
        return answer, parts

    def _record(self, state: LockedState, round: _Round, examples: Mapping[int, int], judged: Answer) -> Record:
        updates = [round.updates[k] for k in sorted(round.updates)]
        weights = [examples[k] for k in sorted(round.updates)]
        figures = [{name: value_of(one) for name, one in a.training.items()} for a in updates]
        losses = [(f["loss"], n) for f, n in zip(figures, weights, strict=True) if "loss" in f]
        native = sum(bool(f.get("native")) for f in figures)
        overlap = 1.0 if state.mask is None and len(updates) > 1 else round.overlap
        return {
            "round": state.round,
            **(judged.test.record() if judged.test else {}),
            "sparsity": 1.0 - state.nonzero / self.layout.n,
            "nonzero": state.nonzero,
            "participants": list(round.chosen) if state.round else [],
            "failures": [{"client": client, "reason": why} for client, why in sorted(round.failures)],
            "bytes_down": round.bytes_down,
            "bytes_up": round.bytes_up,
            "seconds_train": sum(f.get("seconds", 0.0) for f in figures),
            "seconds_round": time.perf_counter() - round.started,
            "client_drift": None,  # the server sees no update
            "mask_overlap": overlap,
            "train_loss": sum(loss * n for loss, n in losses) / sum(n for _, n in losses) if losses else None,
            "backends": {"native": native, "torch": len(updates) - native},
            "layers_nonzero": list(state.layers),
            "encryption": {
                "clipped": sum(a.clipped for a in updates),
                "ciphertext_down": round.ciphertext_down,
                "ciphertext_up": round.ciphertext_up,
                "seconds_encrypt": sum(value_of(a.seconds) for a in updates),
                "seconds_add": round.seconds_add,
                "seconds_decrypt": round.seconds_decrypt,
            },
        }
