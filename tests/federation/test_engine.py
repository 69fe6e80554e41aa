"""The round loop: who takes part, what is left out and named, and what is recorded."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from torch import nn

from fedsparsify.algorithms import Method, fedavg, fedsparsify_global, fedsparsify_local
from fedsparsify.errors import ArgumentError, TooFewClientsError
from fedsparsify.federation import Federation, Reply
from fedsparsify.federation.engine import check_federation, participants
from fedsparsify.layout import ParameterLayout
from fedsparsify.purge import make_purge
from fedsparsify.schedules import PolynomialSchedule
from fedsparsify.state import Mask, ModelState, ServerState
from fedsparsify.wire import Kind, Message, decode, encode

LAYOUT = ParameterLayout.of(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
N = LAYOUT.n
ROUNDS = 4
Fault = Callable[[Message, Mask], bytes | str]


def global_method() -> Method:
    return fedsparsify_global(PolynomialSchedule(0.0, 0.8, 1, ROUNDS), make_purge(LAYOUT))


def local_method() -> Method:
    return fedsparsify_local(PolynomialSchedule(0.0, 0.8, 1, ROUNDS), make_purge(LAYOUT))


def honest(update: Message, base: Mask) -> bytes:
    return encode(update, LAYOUT, base=base)


class Scripted:
    """A transport whose clients add a fixed step to what they get, and misbehave as told."""

    def __init__(self, method: Method, faults: Mapping[tuple[int, int], Fault] | None = None, *, late: bool = False):
        self.method, self.faults, self.late = method, faults or {}, late

    def exchange(self, round: int, clients: Sequence[int], broadcast: bytes) -> Iterator[Reply]:
        for k in reversed(clients) if self.late else clients:
            message = decode(broadcast, LAYOUT)
            assert (message.kind, message.round) == (Kind.BROADCAST, round)

            def tune(model: ModelState, k: int = k) -> ModelState:
                step = np.random.default_rng([round, k]).normal(size=N).astype(np.float32)
                return ModelState(np.where(model.mask, model.w + step, 0), model.mask, model.buffers + np.float32(k))

            model = self.method.client_update(message.model, round, tune)
            update = Message(Kind.UPDATE, round, model, k, 10 + k, {"loss": 1.0 + k, "seconds": 2.0})
            answer = self.faults.get((round, k), honest)(update, message.model.mask)
            yield Reply(k, None, answer) if isinstance(answer, str) else Reply(k, answer)


class Log:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.states: list[ServerState] = []
        self.records: list[dict[str, Any]] = []
        self.progress: list[tuple[int, int, int]] = []

    def client_done(self, round: int, done: int, total: int) -> None:
        self.progress.append((round, done, total))

    def round_done(self, state: ServerState, record: dict[str, Any]) -> None:
        self.states.append(state)
        self.records.append(record)


def start() -> ServerState:
    w = np.linspace(-1, 1, N).astype(np.float32)
    return ServerState(0, ModelState(w, np.ones(N, np.bool_), np.zeros(LAYOUT.b, np.float32)))


def federation(transport: Scripted, **settings: Any) -> Federation:
    def evaluate(model: ModelState) -> dict[str, float]:
        return {"accuracy": float(np.abs(model.w).mean()), "loss": float(model.w.sum())}

    known: dict[str, Any] = {"clients": 4, "rounds": ROUNDS, "seed": 1, **settings}
    return Federation(transport.method, LAYOUT, transport, evaluate, **known)


def same(a: ServerState, b: ServerState) -> bool:
    return (
        a.round == b.round
        and np.array_equal(a.model.w, b.model.w)
        and np.array_equal(a.model.mask, b.model.mask)
        and np.array_equal(a.model.buffers, b.model.buffers)
    )


def resealed(payload: bytes, change: Callable[[bytearray], None]) -> bytes:
    """Change a message and make its checksum right again, as a hostile sender would."""
    body = bytearray(payload[:-4])
    change(body)
    return bytes(body) + struct.pack("<I", zlib.crc32(body))


def with_model(update: Message, model: ModelState) -> Message:
    return Message(update.kind, update.round, model, update.client, update.num_examples, update.metrics)


def nan_weight(update: Message, base: Mask) -> bytes:
    marker = np.float32(123456.0)
    w = update.model.w.copy()
    w[np.flatnonzero(update.model.mask)[0]] = marker
    payload = honest(with_model(update, ModelState(w, update.model.mask, update.model.buffers)), base)
    at = payload.index(marker.tobytes())

    def change(body: bytearray) -> None:
        body[at : at + 4] = np.float32(np.nan).tobytes()

    return resealed(payload, change)


def regrown(update: Message, base: Mask) -> bytes:
    return honest(with_model(update, ModelState(update.model.w, np.ones(N, np.bool_), update.model.buffers)), base)


def of_another_network(update: Message, base: Mask) -> bytes:
    other = ParameterLayout.of(nn.Linear(N - 1, 1))
    return encode(with_model(update, ModelState(update.model.w, update.model.mask, np.zeros(0, np.float32))), other)


def altered(**fields: Any) -> Fault:
    def fault(update: Message, base: Mask) -> bytes:
        known = {name: getattr(update, name) for name in ("kind", "round", "model", "client", "num_examples")}
        return honest(Message(**{**known, **fields}), base)

    return fault


FAULTS: dict[str, tuple[Fault, str]] = {
    "raises": (lambda update, base: "ValueError: no data today", "ValueError: no data today"),
    "returns NaN": (nan_weight, "nan, which is not a finite number"),
    "returns nothing": (lambda update, base: b"", "0 bytes"),
    "returns garbage": (lambda update, base: bytes(range(256)), "header"),
    "is cut": (lambda update, base: honest(update, base)[:-9], "checksum"),
    "is damaged": (lambda update, base: honest(update, base).replace(b"loss", b"lost"), "checksum"),
    "is of another round": (altered(round=1), "the update is of round 1, but this is round 3"),
    "is another client's": (altered(client=2), "it comes from client 2"),
    "is of another network": (of_another_network, "another network"),
    "is a broadcast": (altered(kind=Kind.BROADCAST, num_examples=0), "not a message of kind broadcast"),
    "regrows": (regrown, "parameters that were pruned before have come back"),
    "claims absurdly many examples": (altered(num_examples=2**63), "more than any client has"),
    "measures NaN": (lambda u, base: honest(Message(**{**vars(u), "metrics": {"loss": np.nan}}), base), "loss' is nan"),
}


@pytest.mark.parametrize("make", [global_method, local_method])
@pytest.mark.parametrize("name", FAULTS)
def test_a_client_that_fails_is_named_and_left_out(name: str, make: Callable[[], Method]) -> None:
    fault, reason = FAULTS[name]
    log, without = Log(), Log()
    # Round 3: by then there is a mask to violate.
    final = federation(Scripted(make(), {(3, 1): fault})).run(start(), [log])
    absent = federation(Scripted(make(), {(3, 1): lambda update, base: "absent"})).run(start(), [without])
    assert same(final, absent)
    assert [failure["client"] for failure in log.records[3]["failures"]] == [1]
    assert reason in log.records[3]["failures"][0]["reason"]
    assert all(record["failures"] == [] for record in log.records if record["round"] != 3)
    assert log.records[3]["participants"] == [0, 1, 2, 3]
    for figure in ("train_loss", "client_drift", "mask_overlap", "seconds_train", "accuracy"):
        assert log.records[3][figure] == without.records[3][figure]
    assert log.records[3]["train_loss"] == pytest.approx((10 * 1 + 12 * 3 + 13 * 4) / 35)
    assert log.records[3]["seconds_train"] == 6.0


def test_a_failure_changes_the_merge() -> None:  # else the test above could not fail
    lost = Scripted(global_method(), {(3, 1): lambda update, base: "absent"})
    assert not same(federation(lost).run(start(), []), federation(Scripted(global_method())).run(start(), []))


def test_too_few_usable_updates_stop_the_run_after_the_round_before() -> None:
    faults: dict[tuple[int, int], Fault] = {(3, k): lambda update, base: "out of order" for k in (0, 2)}
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
        def exchange(self, round: int, clients: Sequence[int], broadcast: bytes) -> Iterator[Reply]:
            for reply in super().exchange(round, clients, broadcast):
                sent.extend((len(broadcast), len(reply.payload or b"")))
                yield reply

    log = Log()
    federation(Measured(fedavg()), rounds=1).run(start(), [log])
    assert (log.records[1]["bytes_down"], log.records[1]["bytes_up"]) == (sum(sent[::2]), sum(sent[1::2]))
    assert len(sent) == 8


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
