"""Encrypted federations: the plaintext's model but for rounding, held by clients, and by no server.

Real encryption and real messages; training is a fixed step.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tenseal")  # the extra "encryption"

from fedsparsify.algorithms import Method
from fedsparsify.errors import ArgumentError, DataError, FederationError, TooFewClientsError, WireError
from fedsparsify.federation import Client, Reply, Site
from fedsparsify.federation.encrypted import (
    EncryptedClient,
    EncryptedFederation,
    EncryptedTransport,
    Keyring,
    LockedState,
    LockedStates,
    open_model,
)
from fedsparsify.federation.encrypted.client import write_mask
from fedsparsify.federation.encrypted.messages import Answer, Kept, Order, Verdict, read, write
from fedsparsify.secure import CIPHERS, CkksScheme, FixedPoint, Key, Scheme, make_key
from fedsparsify.state import Floats, ModelState, ServerState
from tests.federation.fakes import LAYOUT, ROUNDS, Log, N, Stepping, federation_of, global_method, local_method, start

SCHEME = Scheme.of(4)
BOUND = 8.0
METHODS = {"global": global_method, "local": local_method}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)

Fault = Callable[[bytes], bytes | str]


@pytest.fixture(scope="module")
def keyring() -> Keyring:
    return Keyring(CIPHERS["bfv"], make_key(SCHEME), SCHEME, BOUND)


def judged(model: ModelState) -> dict[str, float]:
    return {"accuracy": float(np.abs(model.w).mean()), "loss": float(model.w.sum())}


class Crew:
    """Clients that hold between 10 and 13 examples, and a wire on which a test can listen and misbehave.

    Attributes:
        sent: all payloads, in both directions.
        faults: (kind of the order, round, client) -> what becomes of its answer.
        deaf: (kind, round) -> how an order is changed before clients get it.
    """

    def __init__(self, method: Method, keyring: Keyring, own: Mapping[int, dict[str, Any]] | None = None) -> None:
        self.method, self.keyring, self.own = method, keyring, own or {}
        self.sent: list[bytes] = []
        self.kinds: list[tuple[str, int, int]] = []
        self.faults: dict[tuple[str, int, int], Fault] = {}
        self.altered: dict[tuple[str, int], Callable[[bytes], bytes]] = {}
        self.transport = EncryptedTransport(self, self.make)
        self.forget()

    def forget(self, *clients: int) -> None:
        """Start these clients' processes anew, or all."""
        self.site = Site(lambda k: Client(k, [0] * (10 + k), self.method, Stepping(), seed=1))  # type: ignore[arg-type]
        if clients:
            for k in clients:
                self.transport._made.pop(k)
        else:
            self.transport = EncryptedTransport(self, self.make)

    def make(self, k: int) -> EncryptedClient:
        given: dict[str, Any] = {"method": self.method, "keyring": self.keyring, **self.own.get(k, {})}
        return EncryptedClient(
            k, 10 + k, layout=LAYOUT, initial=start().model, evaluate=given.pop("evaluate", judged), **given
        )

    def exchange(self, round: int, broadcasts: Mapping[int, bytes]) -> Iterator[Reply]:
        """The clients' training, within :class:`EncryptedTransport`."""
        for k, broadcast in broadcasts.items():
            yield Reply(k, self.site.answer(k, round, broadcast))

    def carried(self) -> Mapping[str, Floats]:
        return {}

    def restore(self, carried: Mapping[str, Floats]) -> None: ...

    def listen(self) -> Any:
        crew = self

        class Wire(Crew):
            def __init__(self) -> None: ...

            def exchange(self, round: int, broadcasts: Mapping[int, bytes]) -> Iterator[Reply]:
                kinds = {k: read(order, Order)[0].kind for k, order in broadcasts.items()}
                change = {k: crew.altered.get((kinds[k], round), bytes) for k in broadcasts}
                orders = {k: change[k](order) for k, order in broadcasts.items()}
                for reply in crew.transport.exchange(round, orders):
                    k = reply.client
                    crew.kinds.append((kinds[k], round, k))
                    crew.sent += [broadcasts[k], reply.payload or b""]
                    fault = crew.faults.get((kinds[k], round, k))
                    answer = fault(reply.payload or b"") if fault else None
                    yield (
                        Reply(k, None, answer)
                        if isinstance(answer, str)
                        else reply
                        if answer is None
                        else Reply(k, answer)
                    )

        return Wire()

    def federation(self, **settings: Any) -> EncryptedFederation:
        known: dict[str, Any] = {"clients": 4, "rounds": ROUNDS, "seed": 1, **settings}
        known |= {"cipher": self.keyring.cipher, "scheme": self.keyring.scheme, "metric": "accuracy"}
        return EncryptedFederation(self.method, LAYOUT, self.listen(), **known)

    def run(self, state: LockedState | None = None, **settings: Any) -> tuple[ServerState, list[dict[str, Any]]]:
        log = Log()
        final = self.federation(**settings).run(state, [log])
        return opened(self.keyring.key, final), log.records


def opened(key: Key, state: LockedState) -> ServerState:
    return open_model(key, state.model, state.run, state.round, LAYOUT)


def in_the_clear(
    method: Method, lost: Mapping[int, set[int]] | None = None, **settings: Any
) -> tuple[ServerState, list[dict[str, Any]]]:
    """The same federation without encryption."""
    site = Site(lambda k: Client(k, [0] * (10 + k), method, Stepping(), seed=1))  # type: ignore[arg-type]

    class Plain(Crew):
        def __init__(self) -> None: ...

        def exchange(self, round: int, broadcasts: Mapping[int, bytes]) -> Iterator[Reply]:
            for k, broadcast in broadcasts.items():
                answer = site.answer(k, round, broadcast)
                yield Reply(k, None, "lost") if k in (lost or {}).get(round, ()) else Reply(k, answer)

    log = Log()
    return federation_of(method, Plain(), min_clients=2, **settings).run(start(), [log]), log.records


def assert_close(ours: ServerState, theirs: ServerState) -> None:
    """The same mask, and values but for what fixed point rounds away in four rounds of four clients."""
    unit = 1 / FixedPoint(BOUND, SCHEME.plain_modulus, SCHEME.participants).scale
    assert np.array_equal(ours.model.mask, theirs.model.mask)
    assert np.abs(ours.model.w - theirs.model.w).max() <= ROUNDS * (0.5 * 4 + 1) * unit
    assert np.abs(ours.model.buffers - theirs.model.buffers).max() < 1e-5


@every_method
@pytest.mark.parametrize("settings", [{}, {"participation": 0.5, "clients": 4}], ids=["all", "half"])
def test_the_model_is_that_of_the_plaintext_but_for_rounding(
    method: Callable[[], Method], settings: dict[str, Any], keyring: Keyring
) -> None:
    ours, records = Crew(method(), keyring).run(**settings)
    theirs, expected = in_the_clear(method(), **settings)
    assert_close(ours, theirs)
    for mine, other in zip(records, expected, strict=True):
        same = ("round", "sparsity", "nonzero", "participants", "failures", "mask_overlap", "train_loss", "backends")
        assert {key: mine[key] for key in same} == {key: other[key] for key in same}
        assert mine["layers_nonzero"] == other["layers_nonzero"]
        assert mine["accuracy"] == pytest.approx(other["accuracy"], abs=1e-3)


@every_method
def test_another_key_gives_the_same_bits(method: Callable[[], Method], keyring: Keyring) -> None:
    ours, _ = Crew(method(), keyring).run()
    theirs, _ = Crew(method(), replace(keyring, key=make_key(SCHEME))).run()
    assert ours.model.w.tobytes() == theirs.model.w.tobytes()
    assert ours.model.buffers.tobytes() == theirs.model.buffers.tobytes()


def test_ckks_adds_the_same_up_and_only_its_rounding_differs() -> None:
    scheme = CkksScheme()
    cipher = CIPHERS["ckks"]
    crew = Crew(local_method(), Keyring(cipher, cipher.make_key(scheme), scheme, BOUND))
    ours, records = crew.run(rounds=2)
    theirs, _ = in_the_clear(local_method(), rounds=2)
    assert_close(ours, theirs)
    assert records[2]["encryption"]["ciphertext_up"] > 4 * 200_000


@every_method
def test_what_the_server_sees_has_only_the_parts_that_it_should_and_no_value(
    method: Callable[[], Method], keyring: Keyring
) -> None:
    crew = Crew(method(), keyring)
    seen: list[ModelState] = []

    class Overheard(Stepping):
        def tune(self, start: ModelState, data: object, *, round: int, client: int, **known: Any) -> Any:
            tuned = super().tune(start, data, round=round, client=client, **known)
            seen.extend([start, tuned.model])
            return tuned

    crew.site = Site(lambda k: Client(k, [0] * (10 + k), crew.method, Overheard(), seed=1))  # type: ignore[arg-type]
    crew.run()
    votes = crew.method.merges == "vote"
    parts: dict[str, set[str]] = {}
    for order, answer in zip(crew.sent[::2], crew.sent[1::2], strict=True):
        head, sent = read(order, Order)
        parts.setdefault(head.kind, set()).update(sent)
        reply, returned = read(answer, Answer)
        parts.setdefault(reply.kind, set()).update(returned)
    assert parts["begin"] == parts["train"] == set()
    assert parts["ready"] == parts["merged"] == {"model"}
    assert parts["update"] == ({"values", "mask"} if votes else {"values"})
    assert parts["merge"] == ({"sum", "mask"} if votes else {"sum"})
    wire = b"".join(crew.sent)
    changes = [tuned.at(start.mask) - start.values for start, tuned in zip(seen[::2], seen[1::2], strict=True)]
    for vector in (*changes, *(model.values for model in seen), *(model.buffers[1:] for model in seen)):
        if np.count_nonzero(vector[:3]) == 3:
            assert vector[:3].tobytes() not in wire
            assert keyring.parameters.integers(vector, 0.25)[0][:3].tobytes() not in wire
    if not votes:
        for model in seen:
            if 3 < model.nonzero < N:
                assert write_mask(model.mask, np.ones(N, np.bool_), LAYOUT)[1:] not in wire


@every_method
def test_clients_that_were_started_anew_are_sent_the_locked_model_once(
    method: Callable[[], Method], keyring: Keyring
) -> None:
    undisturbed, _ = Crew(method(), keyring).run()
    crew = Crew(method(), keyring)

    def restarts(answer: bytes) -> bytes:
        crew.forget(1, 2)
        return answer

    crew.faults["train", 2, 3] = restarts  # between two exchanges of a round
    crew.faults["merge", 3, 3] = restarts  # between two rounds
    ours, records = crew.run()
    assert ours.model.w.tobytes() == undisturbed.model.w.tobytes()
    assert all(not record["failures"] for record in records)
    asked_twice = {kind for kind in crew.kinds if crew.kinds.count(kind) > 1}
    assert asked_twice == {("merge", 2, 1), ("merge", 2, 2), ("train", 4, 1), ("train", 4, 2)}


@every_method
def test_a_server_that_was_killed_goes_on_from_its_checkpoint_to_the_same_bits(
    method: Callable[[], Method], keyring: Keyring
) -> None:
    whole, _ = Crew(method(), keyring).run()
    form = LockedStates(LAYOUT)
    for everybody in (True, False):
        crew = Crew(method(), keyring)
        log = Log()
        crew.federation(rounds=3).run(None, [log])
        # It was killed after clients had made round 3's model, before it had written that down.
        kept = form.read(form.write(log.states[2]))  # type: ignore[arg-type]
        assert form.write(kept) == form.write(log.states[2])  # type: ignore[arg-type]
        if everybody:
            crew.forget()
        ours, records = crew.run(kept)
        assert [record["round"] for record in records] == [3, 4]
        assert ours.model.w.tobytes() == whole.model.w.tobytes()


@every_method
def test_a_client_that_fails_is_left_out_of_the_sum_and_named(method: Callable[[], Method], keyring: Keyring) -> None:
    crew = Crew(method(), keyring)
    crew.faults["train", 2, 1] = lambda answer: "it fell over"
    crew.faults["merge", 3, 2] = lambda answer: "too late"
    ours, records = crew.run()
    assert records[2]["failures"] == [{"client": 1, "reason": "it fell over"}]
    assert records[3]["failures"] == [{"client": 2, "reason": "too late"}]
    theirs, _ = in_the_clear(method(), lost={2: {1}})  # who is late with the merged model is in the sum
    assert_close(ours, theirs)


def test_the_sum_is_weighted_by_those_who_are_in_it(keyring: Keyring) -> None:
    crew = Crew(global_method(), keyring)
    crew.faults["train", 1, 3] = lambda answer: "it fell over"
    ours, _ = crew.run(rounds=1)
    steps = [np.random.default_rng([1, k]).normal(size=N) for k in range(3)]
    mean = sum((10 + k) * step for k, step in enumerate(steps)) / 33
    assert np.abs(ours.model.w - (start().model.w + mean)[...] * ours.model.mask).max() < 1e-3


def test_where_the_judge_is_lost_another_judges(keyring: Keyring) -> None:
    undisturbed, expected = Crew(global_method(), keyring).run()
    crew = Crew(global_method(), keyring)
    crew.faults["merge", 2, 0] = crew.faults["merge", 2, 1] = lambda answer: "lost"
    ours, records = crew.run()
    assert records[2]["accuracy"] == expected[2]["accuracy"]
    assert [failure["client"] for failure in records[2]["failures"]] == [0, 1]
    assert ours.model.w.tobytes() == undisturbed.model.w.tobytes()


def test_clients_that_arrive_at_different_models_stop_the_run(keyring: Keyring) -> None:
    other = replace(global_method(), server_update=local_method().server_update)  # it purges nothing
    crew = Crew(global_method(), keyring, own={2: {"method": other}})
    with pytest.raises(FederationError, match="clients 2 have another merged model than the other 3: look for what"):
        crew.run()


def test_clients_with_different_keys_stop_the_run_before_it_begins(keyring: Keyring) -> None:
    stranger = replace(keyring, key=make_key(SCHEME))
    with pytest.raises(FederationError, match="clients 3 have another key than the other 3: give all of them the same"):
        Crew(global_method(), keyring, own={3: {"keyring": stranger}}).run()


def test_a_sum_that_was_altered_stops_the_run_and_retires_the_key(keyring: Keyring, tmp_path: Path) -> None:
    path = tmp_path / "clients.key"
    keyring.key.save(path)
    crew = Crew(global_method(), replace(keyring, path=path))

    def alter(order: bytes) -> bytes:
        head, parts = read(order, Order)
        values = bytearray(parts["sum"])
        values[60] ^= 1
        values[-4:] = zlib.crc32(values[:-4]).to_bytes(4, "little")
        return write(head, {**parts, "sum": bytes(values)})

    crew.altered["merge", 2] = alter
    with pytest.raises(FederationError, match=r"round 2: client 0 refuses the sum.*make a new key"):
        crew.run()
    with pytest.raises(DataError, match=r"clients\.key\.refused says so"):
        Key.load(path)
    crew.altered.clear()
    crew.forget(1, 2, 3)
    with pytest.raises(FederationError, match="client 0 refuses the sum"):  # it has not forgotten
        crew.run()


def rubbish(answer: bytes) -> bytes:
    return b"garbage"


def of_another_round(answer: bytes) -> bytes:
    head, parts = read(answer, Answer)
    return write(head.model_copy(update={"round": 1}), parts)


def of_another_client(answer: bytes) -> bytes:
    head, parts = read(answer, Answer)
    return write(head.model_copy(update={"client": 2}), parts)


def without_values(answer: bytes) -> bytes:
    return write(read(answer, Answer)[0])


def cut_values(answer: bytes) -> bytes:
    head, parts = read(answer, Answer)
    return write(head, {**parts, "values": parts["values"][:-8]})


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (rubbish, 'does not begin with "FSX1"'),
        (of_another_round, "it is of client 1 and round 1"),
        (of_another_client, "it is of client 2 and round 3"),
        (without_values, "encrypted message: 0 bytes are fewer"),
        (cut_values, "bytes where"),
    ],
)
def test_a_malformed_answer_is_named_and_left_out(fault: Fault, why: str, keyring: Keyring) -> None:
    crew = Crew(global_method(), keyring)
    crew.faults["train", 3, 1] = fault
    _, records = crew.run()
    (failure,) = records[3]["failures"]
    assert failure["client"] == 1 and why in failure["reason"]


def test_values_beyond_the_bound_are_clipped_and_counted(keyring: Keyring) -> None:
    tight = replace(keyring, bound=0.25)
    ours, records = Crew(global_method(), tight).run(rounds=1)
    assert records[1]["encryption"]["clipped"] == sum(
        int(np.count_nonzero(np.abs(np.float32(np.random.default_rng([1, k]).normal(size=N))) > 0.25)) for k in range(4)
    )
    moved = np.abs(ours.model.w - start().model.w)[ours.model.mask]
    assert moved.max() <= 0.25 + 1e-5


def test_values_that_are_not_finite_leave_their_client_out(keyring: Keyring) -> None:
    crew = Crew(global_method(), keyring)
    tune = Stepping.tune

    class Diverging(Stepping):
        def tune(self, start: ModelState, data: object, *, round: int, client: int, **known: Any) -> Any:
            tuned = tune(self, start, data, round=round, client=client, **known)
            if (round, client) == (2, 1):
                tuned.model.w[0] = np.nan
            return tuned

    crew.site = Site(lambda k: Client(k, [0] * (10 + k), crew.method, Diverging(), seed=1))  # type: ignore[arg-type]
    _, records = crew.run()
    (failure,) = records[2]["failures"]
    assert failure["client"] == 1 and "not a finite" in failure["reason"]


def test_a_sum_of_too_few_stops_the_run(keyring: Keyring) -> None:
    crew = Crew(global_method(), keyring)
    for k in (0, 1, 3):
        crew.faults["train", 2, k] = lambda answer: "asleep"
    with pytest.raises(TooFewClientsError, match=r"1 of 4 .*min_clients = 2 \(client 0: asleep"):
        crew.run()


def test_a_key_for_another_number_of_participants_is_refused() -> None:
    with pytest.raises(
        ArgumentError, match="for up to 26 participants in a round, and this run needs that for up to 106"
    ):
        Keyring(CIPHERS["bfv"], make_key(SCHEME), Scheme.of(100), BOUND)


def test_bytes_and_seconds_are_accounted_for(keyring: Keyring) -> None:
    crew = Crew(global_method(), keyring)
    _, records = crew.run()
    assert sum(map(len, crew.sent)) == sum(record["bytes_up"] + record["bytes_down"] for record in records)
    for record in records[1:]:
        figures = record["encryption"]
        assert 0 < figures["ciphertext_up"] < record["bytes_up"]
        assert 0 < figures["ciphertext_down"] < record["bytes_down"]
        assert min(figures["seconds_encrypt"], figures["seconds_add"], figures["seconds_decrypt"]) > 0


def test_a_damaged_message_is_refused_whatever_is_damaged() -> None:
    head = Order(kind="merge", round=3, judge=1, run="ab" * 16, state="cd" * 16, examples=[(0, 10), (1, 11)])
    message = write(head, {"sum": b"12345", "mask": b"678"})
    assert read(message, Order)[1] == {"sum": b"12345", "mask": b"678"}
    for size in range(len(message)):
        with pytest.raises(WireError):
            read(message[:size], Order)
    chance = random.Random(1)
    for _ in range(3000):
        damaged = bytearray(message)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        if chance.random() < 0.5:  # as somebody would who means it
            damaged[-4:] = zlib.crc32(damaged[:-4]).to_bytes(4, "little")
        for judge in (partial(read, kind=Order), partial(read, kind=Answer), partial(read, kind=Kept)):
            with suppress(WireError):
                judge(bytes(damaged))


def test_a_part_that_says_it_is_huge_takes_no_memory() -> None:
    text = b'{"round":0,"client":0,"kind":"lacking","parts":{"values":4611686018427387903}}'
    body = struct.pack("<4sI", b"FSX1", len(text)) + text
    with pytest.raises(WireError, match="part values of 4611686018427387903 bytes is cut off"):
        read(body + struct.pack("<I", zlib.crc32(body)), Answer)


def model_of(answer: bytes, **changes: Any) -> bytes:
    head, parts = read(answer, Answer)
    return write(head.model_copy(update=changes), parts)


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "no key": ({"key": None}, "key, state and a number of examples are due"),
    "no state": ({"state": None}, "key, state and a number of examples are due"),
    "no examples": ({"examples": 0}, "key, state and a number of examples are due"),
    "no layers": ({"layers": []}, "so many parameters cannot be left"),
    "too many parameters": ({"layers": [2**32 - 1] * 4}, "so many parameters cannot be left"),
    "other layers": ({"layers": [1]}, "so many parameters cannot be left"),
}


@pytest.mark.parametrize("kind", ["begin", "merge"])
@pytest.mark.parametrize(("changes", "why"), HOSTILE.values(), ids=HOSTILE)
def test_a_model_that_cannot_be_is_refused_and_its_client_named(
    kind: str, changes: dict[str, Any], why: str, keyring: Keyring
) -> None:
    undisturbed, _ = Crew(global_method(), keyring).run()
    crew = Crew(global_method(), keyring)
    t = 0 if kind == "begin" else 2
    crew.faults[kind, t, 0] = lambda answer: model_of(answer, **changes)
    _, records = crew.run()
    named = {failure["client"]: failure["reason"] for failure in records[t]["failures"]}
    assert set(named) == {0} and why in named[0]
    assert records[-1]["accuracy"] == pytest.approx(judged(undisturbed.model)["accuracy"], abs=0.5)


@pytest.mark.parametrize(
    "test",
    [
        {"round": 99.0},
        {"accuracy": {"a": 1.0}},
        {"metric": "x", "score": 1, "loss": 1},
        {"metric": "mae", "score": 1.0, "loss": 1.0},  # of a classification
    ],
)
def test_a_judge_cannot_write_into_records_what_he_likes(test: Any, keyring: Keyring) -> None:
    crew = Crew(global_method(), keyring)

    def lie(answer: bytes) -> bytes:
        head, parts = read(answer, Answer)
        return write(head.model_copy(update={"test": Verdict.model_construct(**test)}), parts)

    crew.faults["merge", 2, 0] = lie
    _, records = crew.run()
    assert [record["round"] for record in records] == list(range(ROUNDS + 1))
    assert records[2]["failures"][0]["client"] == 0


def test_a_peers_words_are_one_short_line(keyring: Keyring) -> None:
    crew = Crew(global_method(), keyring)
    text = b'{"round":2,"client":1,"kind":"update","training":{"\\u001b]0;pwn' + b"x" * 4000 + b'":"00"}}'
    body = struct.pack("<4sI", b"FSX1", len(text)) + text
    crew.faults["train", 2, 1] = lambda answer: body + struct.pack("<I", zlib.crc32(body))
    _, records = crew.run()
    (failure,) = records[2]["failures"]
    assert failure["reason"].isprintable() and len(failure["reason"]) <= 300 and "pwn" not in failure["reason"]


def test_too_few_who_agree_stop_the_run(keyring: Keyring) -> None:
    crew = Crew(global_method(), keyring)
    for k in (1, 2, 3):
        crew.faults["merge", 2, k] = lambda answer: "lost"
    with pytest.raises(TooFewClientsError, match=r"round 2: 1 of 4 .*min_clients = 3"):
        crew.run(min_clients=3)


def test_where_nobody_judges_the_run_says_so(keyring: Keyring) -> None:
    crew = Crew(global_method(), keyring)
    for k in range(4):
        crew.faults["merge", 2, k] = lambda answer: model_of(answer, test=None)
    with pytest.raises(FederationError, match="round 2: no client has evaluated the merged model"):
        crew.run()


def test_the_same_clients_begin_another_run(keyring: Keyring) -> None:
    crew = Crew(global_method(), keyring)
    first, _ = crew.run()
    again, records = crew.run()
    assert first.model.w.tobytes() == again.model.w.tobytes()
    assert all(not record["failures"] for record in records)


def test_nothing_is_encrypted_twice_for_one_attempt(keyring: Keyring) -> None:
    crew = Crew(global_method(), keyring)
    doubled: dict[int, list[bytes]] = {1: [], 2: []}

    def ask_again(order: bytes) -> bytes:
        head, parts = read(order, Order)
        for k in (1, 2):  # in other words, and after somebody else
            asked = (order, write(head.model_copy(update={"judge": k}), parts))
            doubled[k] += [next(iter(crew.transport.exchange(2, {k: one}))).payload or b"" for one in asked]
        return order

    crew.altered["train", 2] = ask_again
    crew.run()
    for answers in doubled.values():
        assert len(set(answers)) == 1 and read(answers[0], Answer)[0].kind == "update"
    attempts = {(h.round, h.attempt) for h in (read(order, Order)[0] for order in crew.sent[::2]) if h.kind != "begin"}
    assert len(attempts) == len({attempt for _, attempt in attempts}) == ROUNDS


def test_an_attempt_that_comes_again_after_another_is_not_answered(keyring: Keyring) -> None:
    crew = Crew(global_method(), keyring)
    old: list[bytes] = []
    told: list[str] = []

    def remember(order: bytes) -> bytes:
        old.append(order)
        return order

    def repeat(order: bytes) -> bytes:
        told.append(next(iter(crew.transport.exchange(3, {1: old[0]}))).failure)
        return order

    crew.altered["train", 2], crew.altered["merge", 3] = remember, repeat
    crew.run()
    assert all("that attempt was answered long ago" in failure for failure in told) and told


def test_one_refusal_ends_the_use_of_the_key_by_all_clients_of_a_process(keyring: Keyring, tmp_path: Path) -> None:
    folder = tmp_path / "sealed"
    ours = replace(keyring, path=folder / "clients.key")  # there is no such folder, so that no mark can be left
    crew = Crew(global_method(), ours)

    def other_round(order: bytes) -> bytes:
        head, parts = read(order, Order)
        return write(head.model_copy(update={"attempt": "ab" * 16}), parts)

    crew.altered["merge", 2] = other_round
    with pytest.raises(FederationError, match=r"round 2: client 0 refuses the sum"):
        crew.run()
    assert ours.retired and str(folder) not in str(crew.sent[-1])
    asked = crew.sent[-2]
    assert read(next(iter(crew.transport.exchange(2, {3: asked}))).payload or b"", Answer)[0].kind == "refused"


@pytest.mark.parametrize("missing", ["attempt", "state"])
def test_an_order_without_its_sums_name_is_refused(missing: str, keyring: Keyring) -> None:
    crew = Crew(global_method(), keyring)

    def cut(order: bytes) -> bytes:
        head, parts = read(order, Order)
        return write(head.model_copy(update={missing: None}), parts)

    crew.altered["train", 2] = cut
    with pytest.raises(TooFewClientsError, match="attempt and state are due"):
        crew.run()


def test_all_clients_are_sent_the_same_bytes(keyring: Keyring) -> None:
    crew = Crew(global_method(), keyring)
    crew.run(rounds=1)
    merges = [order for order in crew.sent[::2] if read(order, Order)[0].kind == "merge"]
    assert len(merges) == 4 and len(set(merges)) == 1


def test_a_client_whose_examples_have_changed_is_named_and_takes_part_again(keyring: Keyring) -> None:
    crew = Crew(global_method(), keyring)

    def grow(answer: bytes) -> bytes:
        crew.transport._made[1]._examples = 16
        crew.site._make = lambda k: Client(k, [0] * (16 if k == 1 else 10 + k), crew.method, Stepping(), seed=1)  # type: ignore[arg-type]
        crew.site._clients.clear()
        return answer

    crew.faults["merge", 1, 3] = grow
    _, records = crew.run()
    (failure,) = records[2]["failures"]
    assert failure["client"] == 1 and "it has 16 examples and had 11: it takes part again" in failure["reason"]
    assert not records[3]["failures"] and not records[4]["failures"]


def test_clients_of_one_process_hold_equal_models_once(keyring: Keyring) -> None:
    from weakref import WeakValueDictionary

    shared = WeakValueDictionary[str, ServerState]()
    crew = Crew(global_method(), keyring, own={k: {"shared": shared} for k in range(4)})
    crew.run()
    held = {id(state) for client in crew.transport._made.values() for t, state in client._states.items() if t > 0}
    assert len(held) == 2


def test_uploads_are_as_long_as_transports_are_told(keyring: Keyring) -> None:
    for name, scheme in (("bfv", SCHEME), ("ckks", CkksScheme())):
        cipher = CIPHERS[name]
        for count in (1, 1022, 1023, 5000):
            key = cipher.make_key(scheme)
            data = cipher.encrypt(key, np.zeros(count, np.int64), client=0, round=1, context=b"")
            longest = cipher.upload(scheme, count)
            assert len(data) == longest if name == "bfv" else 0.7 * longest < len(data) <= longest
