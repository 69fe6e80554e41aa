"""The transport over Flower, with SuperNodes in this process: what is sent, who is found, and what a peer can do."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

pytest.importorskip("flwr")  # the extra "flower"

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedsparsify.algorithms import Method
from fedsparsify.algorithms.fedavg import fedavg
from fedsparsify.errors import ArgumentError, TooFewClientsError
from fedsparsify.federation import Client, Federation, Site
from fedsparsify.federation.flower import FlowerTransport, Node, Task, make_client_app
from fedsparsify.federation.transport import clean
from fedsparsify.layout import ParameterLayout
from fedsparsify.state import ModelState, ServerState
from fedsparsify.tune import Tuned
from tests.federation.fakes import ROUNDS, Log, Stepping, federation_of, global_method, local_method, same, start
from tests.federation.test_engine import Scripted

Answer = Callable[[Message], Message | None]


class Nodes(Grid):
    """A grid whose nodes answer when they are looked at; ``None`` is never.

    Attributes:
        connected: name -> what the node answers; the order is that of its identifiers.
        looks: how many replies were handed over at each look.
    """

    def __init__(self, connected: dict[str, Answer]) -> None:
        self.connected = connected
        self.sent: dict[str, Message] = {}
        self.looks: list[int] = []
        self.pushed: list[int] = []

    def get_nodes(self) -> Iterable[Any]:
        return [SimpleNamespace(node_id=100 + k, name=name) for k, name in enumerate(self.connected)]

    def get_node_ids(self) -> Iterable[int]:
        return [node.node_id for node in self.get_nodes()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            ids.append(f"message {len(self.sent)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.sent[ids[-1]] = message
        self.pushed.append(len({id(message.content.array_records["model"]) for message in messages}))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        handlers = list(self.connected.values())
        replies = [handlers[self.sent[i].metadata.dst_node_id - 100](self.sent[i]) for i in message_ids]
        there = [reply for reply in replies if reply is not None]
        self.looks.append(len(there))
        return there

    def set_run(self, run: object) -> None: ...
    def run(self) -> Any: ...  # type: ignore[override]
    def create_message(self, *_: Any, **__: Any) -> Any: ...
    def send_and_receive(self, *_: Any, **__: Any) -> Any: ...


@pytest.fixture(autouse=True)
def _process_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages ask which run and node their process belongs to."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def honest(method: Method, site: Site | None = None) -> Answer:
    """A SuperNode that runs the app, with a state of its own or a given one."""
    site = site or Site(lambda k: Client(k, [0] * (10 + k), method, Stepping(), seed=1))  # type: ignore[arg-type]

    def answer(task: Task, broadcast: bytes, node: Node) -> bytes:
        return site.answer(task.client, task.round, broadcast)

    return in_app(answer)


def in_app(answer: Callable[[Task, bytes, Node], bytes]) -> Answer:
    app = make_client_app(answer)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    return lambda message: app(message, context)


def replying(content: RecordDict) -> Answer:
    return lambda message: Message(content, reply_to=message)


def payload(data: bytes, stype: str = "fedsparsify.message", name: str = "payload") -> RecordDict:
    return RecordDict({"model": ArrayRecord({name: Array("uint8", (len(data),), stype, data)})})


def transport(grid: Grid, clients: int = 4, **settings: Any) -> FlowerTransport:
    known: dict[str, Any] = {"sites": (), "deadline": 5.0, "patience": 0.05, "largest": 10_000, "pause": 0.01}
    return FlowerTransport(grid, clients=clients, **known | settings)


def four(**others: Answer) -> dict[str, Answer]:
    return {f"site-{k}": honest(global_method()) for k in range(4)} | others


@pytest.mark.parametrize("make", [global_method, local_method])
def test_the_model_and_the_bytes_are_those_of_any_other_transport(make: Callable[[], Method]) -> None:
    here, there = Log(), Log()
    final = federation_of(make(), Scripted(make())).run(start(), [here])
    grid = Nodes({f"site-{k}": honest(make()) for k in range(4)})
    assert same(final, federation_of(make(), transport(grid)).run(start(), [there]))
    for way in ("bytes_down", "bytes_up"):
        assert [r[way] for r in there.records] == [r[way] for r in here.records]
    assert grid.pushed == [1] * 4  # in every round all are sent the same, and it is handed to Flower once


def test_clients_are_found_by_the_names_of_their_nodes_in_whatever_order_they_connect() -> None:
    nodes = {name: honest(global_method()) for name in ("c", "a", "d", "b")}
    final = federation_of(global_method(), transport(Nodes(nodes), sites="abcd")).run(start(), [])
    assert same(final, federation_of(global_method(), Scripted(global_method())).run(start(), []))


def test_a_node_that_comes_back_with_no_state_is_served_in_full() -> None:
    method, log = global_method(), Log()
    grid = Nodes(four())

    class Leaving(Log):
        def round_done(self, state: ServerState, record: dict[str, Any]) -> None:
            if state.round == 2:
                grid.connected["site-1"] = honest(method)

    final = federation_of(method, transport(grid)).run(start(), [Leaving(), log])
    assert same(final, federation_of(method, Scripted(method)).run(start(), []))
    assert all(record["failures"] == [] for record in log.records)


def test_a_server_that_goes_back_a_round_gets_the_same_answer_again() -> None:
    method = local_method()
    sites = [Site(lambda k: Client(k, [0] * (10 + k), method, Stepping(), seed=1, coding="int8")) for _ in range(4)]  # type: ignore[arg-type]
    grid = Nodes({f"site-{k}": honest(method, site) for k, site in enumerate(sites)})
    log = Log()
    federation = federation_of(method, transport(grid), trends=False)
    final = federation.run(start(), [log])
    again = federation.run(log.states[-2], [])  # as after a kill between the last round's training and its checkpoint
    assert same(again, final)


ABSENT = 'its SuperNode "b" is not connected'
REPLIES: dict[str, tuple[Answer, str]] = {
    "never": (lambda message: None, "it did not answer within 0.05 s (deployment.deadline)"),
    "error": (
        lambda message: Message(Error(1, "<class 'X'>:<'lines\nand \x1b[31mcolours'>"), reply_to=message),
        "its SuperNode failed: <class 'X'>:<'lines and [31mcolours'>",
    ),
    "nothing": (replying(RecordDict()), "its reply holds no message of FedSparsify's"),
    "another type": (replying(payload(b"x", "numpy.ndarray")), "its reply holds no message of FedSparsify's"),
    "another name": (replying(payload(b"x", name="w")), "its reply holds no message of FedSparsify's"),
    "too large": (replying(payload(bytes(10_001))), "its reply has 10001 bytes, and at most 10000 can be right"),
    "a failure": (
        replying(RecordDict({"failure": ConfigRecord({"reason": "disk\r\nfull " + 400 * "x"})})),
        "disk full " + 290 * "x",
    ),
    "a failure without a reason": (
        replying(RecordDict({"failure": ConfigRecord({})})),
        "failed without a reason",
    ),
    "garbage": (replying(payload(b"garbage")), "message: 7 bytes are fewer"),
}


@pytest.mark.parametrize("name", REPLIES)
def test_a_node_that_answers_badly_is_named_and_left_out(name: str) -> None:
    answer, reason = REPLIES[name]
    log = Log()
    nodes = four(**{"site-1": answer})
    federation_of(global_method(), transport(Nodes(nodes), deadline=0.05)).run(start(), [log])
    for record in log.records[1:]:
        assert [failure["client"] for failure in record["failures"]] == [1]
        assert record["failures"][0]["reason"].startswith(reason)
        assert len(record["failures"][0]["reason"]) < 400


def test_a_client_that_raises_tells_only_what_was_raised_on_purpose() -> None:
    def on_purpose(task: Task, broadcast: bytes, node: Node) -> bytes:
        raise ArgumentError(f"client {task.client} has no example")

    def by_accident(task: Task, broadcast: bytes, node: Node) -> bytes:
        raise ValueError("patient 17")

    log = Log()
    nodes = four(**{"site-0": in_app(on_purpose), "site-2": in_app(by_accident)})
    federation_of(global_method(), transport(Nodes(nodes))).run(start(), [log])
    assert log.records[1]["failures"] == [
        {"client": 0, "reason": "client 0 has no example"},
        {"client": 2, "reason": "ValueError: the log of its SuperNode says more"},
    ]


@pytest.mark.parametrize(
    ("names", "sites", "reason"),
    [
        ("acd", "abcd", ABSENT),
        ("", "abcd", 'its SuperNode "a" is not connected'),
        ("acd", "", "no SuperNode is connected for it within 0.05 s"),
    ],
)
def test_a_node_that_is_not_there_is_waited_for_and_then_named(names: str, sites: str, reason: str) -> None:
    grid = Nodes({name: honest(global_method()) for name in names})
    with pytest.raises(TooFewClientsError, match=r"round 1: \d of 4") as caught:
        federation_of(global_method(), transport(grid, sites=sites), min_clients=4).run(start(), [])
    assert reason in str(caught.value)


def test_two_nodes_of_one_name_are_both_left_out() -> None:
    grid = Nodes({name: honest(global_method()) for name in "abcd"})
    twice = [*grid.get_nodes(), SimpleNamespace(node_id=900, name="b")]
    grid.get_nodes = lambda: twice  # type: ignore[method-assign]
    log = Log()
    federation_of(global_method(), transport(grid, sites="abcd")).run(start(), [log])
    reason = '2 SuperNodes are registered as "b": unregister all but one'
    assert log.records[1]["failures"] == [{"client": 1, "reason": reason}]


def test_a_node_that_connects_late_takes_part() -> None:
    nodes = four()
    late = nodes.pop("site-3")
    grid = Nodes(nodes)
    looks = iter(range(100))
    before = grid.get_nodes

    def get_nodes() -> Iterable[Any]:
        if next(looks) == 3:
            grid.connected["site-3"] = late
        return before()

    grid.get_nodes = get_nodes  # type: ignore[method-assign]
    log = Log()
    federation_of(global_method(), transport(grid, patience=10.0), min_clients=4).run(start(), [log])
    assert log.records[1]["failures"] == []


def gone(message: Message) -> Message:
    return Message(Error(5, "Node Unavailable"), reply_to=message)


def test_a_node_that_is_lost_in_mid_round_and_comes_back_is_asked_once_more() -> None:
    nodes = four()
    back = nodes["site-2"]
    grid = Nodes(nodes)
    asked = []

    def lost_at_first(message: Message) -> Message | None:
        asked.append(message.metadata.message_id)
        return gone(message) if len(asked) == 1 else back(message)

    nodes["site-2"] = lost_at_first
    log, undisturbed = Log(), Log()
    end = federation_of(global_method(), transport(grid, patience=10.0), min_clients=4).run(start(), [log])
    assert len(asked) == 1 + ROUNDS and len(set(asked)) == len(asked)
    assert [record["failures"] for record in log.records] == [[]] * (1 + ROUNDS)
    assert same(end, federation_of(global_method(), transport(Nodes(four()))).run(start(), [undisturbed]))


@pytest.mark.parametrize("returns", [True, False])
def test_a_node_that_is_lost_for_good_is_named(returns: bool) -> None:
    nodes = four(**{"site-2": gone})
    grid = Nodes(nodes)
    if not returns:
        grid.get_nodes = lambda: [node for node in Nodes.get_nodes(grid) if grid.looks == [] or node.name != "site-2"]  # type: ignore[method-assign]
    replies = list(transport(grid, patience=0.3).exchange(1, dict.fromkeys(range(4), b"broadcast")))
    (reply,) = [reply for reply in replies if reply.client == 2]
    assert (reply.payload, reply.failure) == (None, "its SuperNode failed: Node Unavailable")
    assert len(grid.sent) == 4 + returns


def test_a_late_first_client_keeps_few_of_the_others_replies_here() -> None:
    """At most a window of them; the others wait at the SuperLink until the first is there or given up."""
    held = most = 0
    many = 40

    def counted(message: Message) -> Message:
        nonlocal held
        held += 1
        return Message(payload(b"x"), reply_to=message)

    nodes: dict[str, Answer] = {f"site-{k:02}": counted for k in range(many)}
    nodes["site-00"] = lambda message: None
    seen = []
    for reply in transport(Nodes(nodes), many, deadline=0.3).exchange(1, dict.fromkeys(range(many), b"broadcast")):
        if reply.client == 0:
            most = held
        seen.append(reply.client)
    assert sorted(seen) == list(range(many))
    assert most < 8 < held == many - 1


def test_a_hundred_nodes_updates_are_merged_in_the_memory_of_a_few() -> None:
    layout = ParameterLayout.of(nn.Linear(250, 400, bias=False))
    first = ModelState(np.zeros(layout.n, np.float32), np.ones(layout.n, np.bool_), np.zeros(0, np.float32))

    class Adding(Stepping):
        def tune(self, start: ModelState, data: object, *, client: int, **_: Any) -> Tuned:
            noise = np.random.default_rng(client).standard_normal(layout.n, np.float32)
            return Tuned(ModelState(start.w + noise, start.mask, start.buffers), 0.0, "torch")

    Adding.layout = layout

    def forgetful(message: Message) -> Message | None:
        reply = honest(fedavg(), Site(lambda k: Client(k, [0], fedavg(), Adding(), seed=1)))(message)  # type: ignore[arg-type]
        gc.collect()  # what the nodes keep is not the server's
        return reply

    def peak(nodes: int) -> int:
        grid = Nodes({f"site-{k:03}": forgetful for k in range(nodes)})
        way = transport(grid, nodes, largest=10**7)
        settings: dict[str, Any] = {"clients": nodes, "rounds": 1, "seed": 1, "trends": False}
        federation = Federation(fedavg(), layout, way, lambda model: {"loss": float(model.w.std())}, **settings)
        log = Log()
        tracemalloc.start()
        try:
            federation.run(ServerState(0, first), [log])
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            assert log.records[1]["failures"] == []
            assert log.records[1]["loss"] == pytest.approx(nodes**-0.5, rel=0.05)  # all of them are in the mean

    gc.freeze()  # or each collection goes through all of torch
    try:
        few, many = peak(20), peak(100)
    finally:
        gc.unfreeze()
    assert many < 1.2 * few


def test_texts_of_peers_become_one_short_line() -> None:
    assert clean("a\tb\n\x00c" + 1000 * "d") == "a b c" + 295 * "d"
    assert clean("") == clean(None) == "failed without a reason"
