"""The round loop: who takes part, what is left out and named, and what is recorded."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from torch import nn

from fedsparsify.algorithms import Method
from fedsparsify.algorithms.fedavg import fedavg
from fedsparsify.errors import ArgumentError, StaleReferenceError, TooFewClientsError
from fedsparsify.federation import Client, Federation, Held, Reply, receive
from fedsparsify.federation.engine import check_federation, participants
from fedsparsify.layout import ParameterLayout
from fedsparsify.state import ClientUpdate, Floats, ModelState, ServerState
from fedsparsify.wire import SERVER, Kind, Message, Reference, decode, encode, request_full
from tests.federation.fakes import (
    LAYOUT,
    Log,
    N,
    Stepping,
    federation_of,
    global_method,
    local_method,
    same,
    start,
)

Fault = Callable[[Message, Reference], bytes | str]


def honest(update: Message, reference: Reference) -> bytes:
    return encode(update, LAYOUT, reference)


class Scripted:
    """A transport whose clients add a fixed step to what they get, and misbehave as told."""

    def __init__(self, method: Method, faults: Mapping[tuple[int, int], Fault] | None = None, *, late: bool = False):
        self.method, self.faults, self.late = method, faults or {}, late
        self.held: dict[int, Held] = {}
        self.requests = 0

    def exchange(self, round: int, broadcasts: Mapping[int, bytes]) -> Iterator[Reply]:
        for k in sorted(broadcasts, reverse=self.late):
            held = self.held.get(k, Held())
            try:
                received = receive(broadcasts[k], held.reference, LAYOUT)
            except StaleReferenceError:
                self.requests += 1
                yield Reply(k, request_full(LAYOUT, round, k))
                continue
            assert (received.message.kind, received.message.round) == (Kind.BROADCAST, round)
            client = Client(k, [0] * (10 + k), self.method, Stepping(), seed=1)  # type: ignore[arg-type]
            payload, kept = client.answer(received, held)
            reference = received.reference.with_trend(held.trend if received.message.refers else None)
            fault = self.faults.get((round, k))
            answer = payload if fault is None else fault(decode(payload, LAYOUT, reference), reference)
            if isinstance(answer, str):
                yield Reply(k, None, answer)
                continue
            self.held[k] = kept
            yield Reply(k, answer)

    def carried(self) -> Mapping[str, Floats]:
        return {}

    def restore(self, carried: Mapping[str, Floats]) -> None:
        self.held = {}


def federation(transport: Scripted, **settings: Any) -> Federation:
    return federation_of(transport.method, transport, **settings)


def with_model(update: Message, model: ModelState) -> Message:
    return Message(update.kind, update.round, model, update.client, update.num_examples, update.metrics)


def nan_weight(update: Message, reference: Reference) -> bytes:
    values = update.model.values.copy()
    values[0] = np.nan
    return honest(with_model(update, ModelState.of_values(values, update.model.mask, update.model.buffers)), reference)


def regrown(update: Message, reference: Reference) -> bytes:
    return honest(with_model(update, ModelState(update.model.w, np.ones(N, np.bool_), update.model.buffers)), reference)


def of_another_network(update: Message, reference: Reference) -> bytes:
    other = ParameterLayout.of(nn.Linear(N - 1, 1))
    return encode(with_model(update, ModelState(update.model.w, update.model.mask, np.zeros(0, np.float32))), other)


def altered(**fields: Any) -> Fault:
    def fault(update: Message, reference: Reference) -> bytes:
        known = {name: getattr(update, name) for name in ("kind", "round", "model", "client", "num_examples")}
        return honest(Message(**{**known, **fields}), reference)

    return fault


FAULTS: dict[str, tuple[Fault, str]] = {
    "raises": (lambda update, reference: "ValueError: no data today", "ValueError: no data today"),
    "returns NaN": (nan_weight, "nan, which is not a finite number"),
    "returns nothing": (lambda update, reference: b"", "0 bytes"),
    "returns garbage": (lambda update, reference: bytes(range(256)), "header"),
    "is cut": (lambda update, reference: honest(update, reference)[:-9], "checksum"),
    "is damaged": (lambda update, reference: honest(update, reference).replace(b"FSPM\2\2", b"FSPM\2\1"), "checksum"),
    "is of another round": (altered(round=1), "the update is of round 1, but this is round 3"),
    "is another client's": (altered(client=2), "it comes from client 2"),
    "is of another network": (of_another_network, "another network"),
    "is a broadcast": (altered(kind=Kind.BROADCAST, num_examples=0, client=SERVER), "not a message of kind broadcast"),
    "regrows": (regrown, "parameters that were pruned before have come back"),
    "claims absurdly many examples": (altered(num_examples=2**62), "more than any client has"),
    "measures NaN": (altered(metrics={"loss": np.nan}), "loss' is nan"),
    "lost its trend": (lambda u, reference: honest(u, Reference(reference.model, LAYOUT)), "the message refers to"),
}


@pytest.mark.parametrize("make", [global_method, local_method])
@pytest.mark.parametrize("name", FAULTS)
def test_a_client_that_fails_is_named_and_left_out(name: str, make: Callable[[], Method]) -> None:
    fault, reason = FAULTS[name]
    log, without = Log(), Log()
    # Round 3: by then there is a mask to violate.
    final = federation(Scripted(make(), {(3, 1): fault})).run(start(), [log])
    absent = federation(Scripted(make(), {(3, 1): lambda update, reference: "absent"})).run(start(), [without])
    assert same(final, absent)
    assert [failure["client"] for failure in log.records[3]["failures"]] == [1]
    assert reason in log.records[3]["failures"][0]["reason"]
    assert all(record["failures"] == [] for record in log.records if record["round"] != 3)
    assert log.records[3]["participants"] == [0, 1, 2, 3]
    for figure in ("train_loss", "client_drift", "mask_overlap", "accuracy"):
        assert log.records[3][figure] == without.records[3][figure]
    assert log.records[3]["train_loss"] == pytest.approx((10 * 1 + 12 * 3 + 13 * 4) / 35)
    assert log.records[3]["seconds_train"] > 0


def test_a_failure_changes_the_merge() -> None:  # else the test above could not fail
    lost = Scripted(global_method(), {(3, 1): lambda update, reference: "absent"})
    assert not same(federation(lost).run(start(), []), federation(Scripted(global_method())).run(start(), []))


def test_too_few_usable_updates_stop_the_run_after_the_round_before() -> None:
    faults: dict[tuple[int, int], Fault] = {(3, k): lambda update, reference: "out of order" for k in (0, 2)}
    log, rest = Log(), Log()
    with pytest.raises(TooFewClientsError) as stop:
        federation(Scripted(global_method(), faults), min_clients=3).run(start(), [log])
    assert str(stop.value) == (
        "round 3: 2 of 4 participants returned a usable update, but federation.min_clients = 3"
        " (client 0: out of order; client 2: out of order): mend the clients, then resume"
    )
    assert [record["round"] for record in log.records] == [0, 1, 2]
    # From the state that is kept, the run goes on as if nothing had happened.
    final = federation(Scripted(global_method()), min_clients=3).run(log.states[-1], [rest])
    assert [record["round"] for record in rest.records] == [3, 4]
    assert same(final, federation(Scripted(global_method())).run(start(), []))
    # One fewer is enough where two are asked for.
    federation(Scripted(global_method(), faults), min_clients=2).run(start(), [])


@pytest.mark.parametrize("make", [global_method, local_method])
def test_the_order_in_which_updates_arrive_changes_no_bit(make: Callable[[], Method]) -> None:
    in_order = federation(Scripted(make())).run(start(), [])
    assert same(in_order, federation(Scripted(make(), late=True)).run(start(), []))


def test_every_round_is_recorded_from_the_initial_model_on() -> None:
    log = Log()
    final = federation(Scripted(global_method()), participation=0.5).run(start(), [log])
    assert [record["round"] for record in log.records] == [0, 1, 2, 3, 4]
    assert same(log.states[-1], final)
    assert log.progress == [(t, done, 2) for t in range(1, 5) for done in (1, 2)]
    first, last = log.records[0], log.records[-1]
    assert (
        set(first)
        == set(last)
        >= {
            *("round", "accuracy", "loss", "sparsity", "nonzero", "participants", "failures", "bytes_down", "bytes_up"),
            *("seconds_train", "seconds_round", "client_drift", "mask_overlap", "train_loss", "layers_nonzero"),
        }
    )
    assert (first["participants"], first["bytes_down"], first["bytes_up"], first["nonzero"]) == ([], 0, 0, N)
    assert first["client_drift"] is None and first["mask_overlap"] is None and first["train_loss"] is None
    assert last["nonzero"] == N - int(0.8 * N) == int(final.model.mask.sum()) == sum(last["layers_nonzero"])
    assert last["sparsity"] == 1 - last["nonzero"] / N
    assert last["accuracy"] == float(np.abs(final.model.w).mean())
    assert last["participants"] == participants(1, 4, 4, 0.5)
    assert last["mask_overlap"] == 1.0 and 0 <= last["client_drift"] <= 2


def test_bytes_are_those_of_the_encoded_messages() -> None:
    sent: list[int] = []

    class Measured(Scripted):
        def exchange(self, round: int, broadcasts: Mapping[int, bytes]) -> Iterator[Reply]:
            for reply in super().exchange(round, broadcasts):
                sent.extend((len(broadcasts[reply.client]), len(reply.payload or b"")))
                yield reply

    log = Log()
    federation(Measured(fedavg()), rounds=1).run(start(), [log])
    assert (log.records[1]["bytes_down"], log.records[1]["bytes_up"]) == (sum(sent[::2]), sum(sent[1::2]))
    assert len(sent) == 8


class Forgetful(Scripted):
    """Clients 1 and 2 lose what they hold before round 3."""

    def exchange(self, round: int, broadcasts: Mapping[int, bytes]) -> Iterator[Reply]:
        if round == 3 and self.requests == 0:
            del self.held[1], self.held[2]
        yield from super().exchange(round, broadcasts)


@pytest.mark.parametrize("make", [global_method, local_method])
def test_clients_that_lost_what_they_held_are_served_in_full_in_the_same_round(make: Callable[[], Method]) -> None:
    log, without = Log(), Log()
    transport = Forgetful(make())
    final = federation(transport).run(start(), [log])
    assert same(final, federation(Scripted(make())).run(start(), [without]))
    assert transport.requests == 2
    assert all(record["failures"] == [] for record in log.records)
    assert log.progress == without.progress
    extra = {way: log.records[3][way] - without.records[3][way] for way in ("bytes_down", "bytes_up")}
    assert extra["bytes_down"] > 0 and extra["bytes_up"] >= 2 * len(request_full(LAYOUT, 3, 1))


def test_participants_are_drawn_anew_each_round_and_the_same_for_one_seed() -> None:
    drawn = [participants(7, t, 100, 0.1) for t in range(1, 201)]
    assert drawn == [participants(7, t, 100, 0.1) for t in range(1, 201)]
    assert drawn != [participants(8, t, 100, 0.1) for t in range(1, 201)]
    assert all(len(set(chosen)) == 10 and chosen == sorted(chosen) for chosen in drawn)
    assert all(0 <= k < 100 for chosen in drawn for k in chosen)
    assert len({tuple(chosen) for chosen in drawn}) > 190
    times = Counter(k for chosen in drawn for k in chosen)
    assert len(times) == 100 and max(times.values()) < 40  # 20 expected


@pytest.mark.parametrize(
    ("clients", "participation", "count"),
    [(10, 1.0, 10), (10, 0.25, 3), (10, 0.24, 2), (10, 0.001, 1), (3, 0.5, 2), (1, 0.1, 1), (100, 0.1, 10)],
)
def test_the_number_of_participants_is_the_nearest_and_at_least_one(
    clients: int, participation: float, count: int
) -> None:
    assert len(participants(1, 1, clients, participation)) == count


@pytest.mark.parametrize(
    ("clients", "participation", "min_clients", "wrong"),
    [
        (0, 1.0, 1, "federation.clients = 0"),
        (5, 0.0, 1, "federation.participation = 0.0"),
        (5, 1.5, 1, "federation.participation = 1.5"),
        (5, float("nan"), 1, "federation.participation = nan"),
        (5, 1.0, 6, "federation.min_clients = 6 must be from 1 to 5"),
        (10, 0.3, 4, "federation.min_clients = 4 must be from 1 to 3"),
        (5, 1.0, 0, "federation.min_clients = 0"),
    ],
)
def test_settings_under_which_no_round_could_succeed_are_refused(
    clients: int, participation: float, min_clients: int, wrong: str
) -> None:
    with pytest.raises(ArgumentError, match=wrong):
        check_federation(clients, participation, min_clients)


def test_checking_settings_costs_nothing_however_many_clients_there_are() -> None:
    check_federation(10**15, 0.1, 10**14)


def test_a_reply_of_another_kind_is_refused_before_it_is_read() -> None:
    layout = ParameterLayout.of(nn.Linear(500, 200))
    model = ModelState(np.zeros(layout.n, np.float32), np.ones(layout.n, np.bool_), np.zeros(0, np.float32))
    vectors = {f"v{i}": np.full(layout.n, -0.0, np.float32) for i in range(50)}
    swollen = encode(Message(Kind.CHECKPOINT, 1, model, memory=vectors), layout)
    assert len(swollen) < 10 * layout.n  # to 200 bytes a parameter if it were read

    class Hostile(Scripted):
        def exchange(self, round: int, broadcasts: Mapping[int, bytes]) -> Iterator[Reply]:
            tracemalloc.start()
            yield Reply(0, swollen)

    def evaluate(model: ModelState) -> dict[str, float]:
        return {"accuracy": 0.0, "loss": 0.0}

    with pytest.raises(TooFewClientsError, match="an update was expected, not a message of kind checkpoint"):
        Federation(fedavg(), layout, Hostile(fedavg()), evaluate, clients=1, rounds=1, seed=1).run(
            ServerState(0, model), []
        )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * layout.n


def consumed(updates: Iterator[ClientUpdate]) -> None:
    for _ in updates:
        pass


def raising(state: ServerState, updates: Iterator[ClientUpdate], t: int) -> ServerState:
    raise KeyError("scores")


def answering(make: Callable[[ServerState, int], object]) -> Callable[..., Any]:
    def server_update(state: ServerState, updates: Iterator[ClientUpdate], t: int) -> object:
        consumed(updates)
        return make(state, t)

    return server_update


WIDE: Any = {"v": np.zeros(N)}


def half(state: ServerState) -> ModelState:
    mask = np.arange(N) % 2 == 0
    return ModelState(np.where(mask, state.model.w, 0).astype(np.float32), mask, state.model.buffers)


@pytest.mark.parametrize(
    ("server_update", "message"),
    [
        (raising, r"failed with KeyError: 'scores' \(.*test_engine\.py, line \d+\)"),
        (answering(lambda s, t: s.model), "returned a ModelState; it must return a ServerState"),
        (answering(lambda s, t: ServerState(t - 1, s.model)), r"of round 0; it must be ServerState\(1, \.\.\.\)"),
        (lambda s, updates, t: ServerState(t, s.model), "left updates unread"),
        (
            answering(
                lambda s, t: ServerState(
                    t, ModelState(np.asarray(s.model.w, np.float64), s.model.mask, s.model.buffers)
                )
            ),
            rf"model\.w must be float32\[{N}\]",
        ),
        (answering(lambda s, t: ServerState(t, s.model, WIDE)), rf'memory\["v"\] must be float32\[{N}\]'),
        (
            answering(lambda s, t: ServerState(t, ModelState(s.model.w, np.arange(N) % 2 == 0, s.model.buffers))),
            r"model\.w is not 0 at all pruned positions",
        ),
        (
            answering(lambda s, t: ServerState(t, half(s) if t == 1 else start().model)),
            r"brings pruned parameters back; say Method\(\.\.\., regrows=True\)",
        ),
    ],
)
def test_what_a_method_of_ones_own_returns_is_judged_with_its_name_and_round(
    server_update: Callable[..., Any], message: str
) -> None:
    method = Method("mine", global_method().client_update, server_update)
    with pytest.raises(ArgumentError, match=rf"method mine, round [12]: server_update.*{message}"):
        federation(Scripted(method)).run(start(), [])
