"""The strategy and the client helper for Flower projects, with nodes in this process that train in their own way."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("flwr")  # the extra "flower"

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedsparsify.algorithms.fedsparsify import fedsparsify_global, fedsparsify_local
from fedsparsify.data import Dataset
from fedsparsify.errors import ArgumentError, MissingExtraError, TooFewClientsError, WireError
from fedsparsify.federation import Federation, Simulator
from fedsparsify.federation.existing import Guard, Orders, frozen_checksum, largest_message
from fedsparsify.federation.flower import FedSparsify, SparseModel
from fedsparsify.layout import ParameterLayout
from fedsparsify.purge import make_purge
from fedsparsify.randomness import derive
from fedsparsify.schedules import PolynomialSchedule
from fedsparsify.state import ModelState, ServerState
from fedsparsify.tune import TuneSettings, epochs_of
from fedsparsify.wire import Kind, Reference, decode, encode
from fedsparsify.wire import Message as Encoded

ROUNDS, CLIENTS, SEED = 3, 3, 1
Answer = Callable[[Message], Message | None]
OPTIMISERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def network() -> Net:
    torch.manual_seed(7)
    return Net()


LAYOUT = ParameterLayout.of(network())


def examples(client: int) -> Dataset:
    rng = np.random.default_rng(client)
    x = rng.normal(size=(40 + 10 * client, 8)).astype(np.float32)
    return Dataset(x, np.abs(x[:, :3]).argmax(axis=1).astype(np.int64), ("a", "b", "c"))


DATA = [examples(k) for k in range(CLIENTS)]


def train(model: nn.Module, optimiser: torch.optim.Optimizer, client: int, t: int, epochs: int = 2) -> float:
    """A training loop as any project has it: it has never heard of a mask."""
    model.train()
    loss = torch.zeros(())
    for data, order in epochs_of(DATA[client], epochs, derive(SEED, "batches", round=t, client=client)):
        for rows in torch.split(torch.from_numpy(order), 16):
            optimiser.zero_grad()
            x, y = torch.from_numpy(data.x)[rows], torch.from_numpy(data.y)[rows]
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return float(loss.detach())


def node(client: int, optimiser: str = "sgd") -> Answer:
    """A ClientApp's two functions, with the five lines changed."""

    def answer(message: Message) -> Message:
        model = network()
        sparse = SparseModel.receive(message, model)
        if message.metadata.message_type == "evaluate":
            metrics = MetricRecord({"zeros": float(np.mean(LAYOUT.read(model)[0] == 0)), "num-examples": 10})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)
        loss = train(model, OPTIMISERS[optimiser](model.parameters()), client, sparse.round)
        return sparse.reply(message, num_examples=len(DATA[client]), metrics={"train-loss": loss})

    return answer


class Nodes(Grid):
    """A grid whose nodes answer at once; ``None`` is never.

    Attributes:
        nodes: node identifier -> what it answers.
        sent: all messages so far.
    """

    def __init__(self, nodes: dict[int, Answer]) -> None:
        self.nodes = nodes
        self.sent: list[Message] = []

    def get_node_ids(self) -> Iterable[int]:
        return list(reversed(self.nodes))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        sent = list(messages)
        for number, message in enumerate(sent):
            message.metadata.__dict__["_message_id"] = f"message {len(self.sent) + number}"
        self.sent += sent
        replies = [self.nodes[message.metadata.dst_node_id](message) for message in reversed(sent)]
        for message, reply in zip(reversed(sent), replies, strict=True):
            assert reply is None or reply.metadata.src_node_id == message.metadata.dst_node_id
        return [reply for reply in replies if reply is not None]

    def set_run(self, run: object) -> None: ...
    def run(self) -> Any: ...  # type: ignore[override]
    def create_message(self, *_: Any, **__: Any) -> Any: ...
    def push_messages(self, *_: Any, **__: Any) -> Any: ...
    def pull_messages(self, *_: Any, **__: Any) -> Any: ...


@pytest.fixture(autouse=True)
def _process_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages ask which run and node their process belongs to."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def grid(**others: Answer) -> Nodes:
    """Three honest nodes, 10, 11 and 12; ``n11=...`` replaces one."""
    return Nodes({10 + k: others.get(f"n{10 + k}", node(k)) for k in range(CLIENTS)})


def strategy(**options: Any) -> FedSparsify:
    return FedSparsify(network(), **{"final_sparsity": 0.8, "num_rounds": ROUNDS, "node_timeout": 0.0, **options})


def initial() -> ArrayRecord:
    return ArrayRecord(network().state_dict())


def weights(arrays: ArrayRecord) -> np.ndarray[Any, np.dtype[np.float32]]:
    model = network()
    model.load_state_dict(arrays.to_torch_state_dict())
    return LAYOUT.read(model)[0]


@pytest.mark.parametrize("method", ["fedsparsify-global", "fedsparsify-local"])
def test_the_model_is_the_simulators_bit_for_bit(method: str) -> None:
    schedule, purge = PolynomialSchedule(0.0, 0.8, 1, ROUNDS), make_purge(LAYOUT)
    ours = fedsparsify_global(schedule, purge) if method == "fedsparsify-global" else fedsparsify_local(schedule, purge)
    settings = TuneSettings(0.1, 2, 16, momentum=0.9, weight_decay=0.01, backend="torch", device="cpu")
    with Simulator(network(), ours, DATA, DATA[0], settings, SEED, workers=1) as simulator:
        federation = Federation(ours, LAYOUT, simulator, simulator.evaluate, CLIENTS, ROUNDS, SEED)
        w, buffers = LAYOUT.read(network())
        final = federation.run(ServerState(0, ModelState(w, np.ones(LAYOUT.n, np.bool_), buffers)), [])
    result = strategy(method=method).start(grid(), initial(), ROUNDS)
    model = network()
    model.load_state_dict(result.arrays.to_torch_state_dict())
    ours_w, ours_buffers = LAYOUT.read(model)
    np.testing.assert_array_equal(ours_w, final.model.w)
    np.testing.assert_array_equal(ours_buffers, final.model.buffers)
    assert np.mean(ours_w == 0) > 0.7


def test_the_result_is_an_ordinary_state_dict_and_so_is_what_is_evaluated() -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def evaluate(t: int, arrays: ArrayRecord) -> MetricRecord:
        seen.append(arrays.to_torch_state_dict())
        return MetricRecord({"zeros": float(np.mean(weights(arrays) == 0))})

    federation = strategy()
    result = federation.start(grid(), initial(), ROUNDS, evaluate_fn=evaluate)
    wanted = network().state_dict()
    for found in (*seen, result.arrays.to_torch_state_dict()):
        assert {k: (v.shape, v.dtype) for k, v in found.items()} == {k: (v.shape, v.dtype) for k, v in wanted.items()}
    assert seen[-1]["1.num_batches_tracked"].item() == 0  # as in the arrays that it started from
    assert not torch.equal(seen[-1]["1.running_mean"], wanted["1.running_mean"])
    n = LAYOUT.n
    schedule = PolynomialSchedule(0.0, 0.8, 1, ROUNDS)
    scheduled = [int(schedule(t) * n) / n for t in range(1, ROUNDS + 1)]
    assert [r["zeros"] for r in result.evaluate_metrics_serverapp.values()] == pytest.approx(
        [16 / n, *scheduled]
    )  # batch norm shifts by 0
    assert [r["zeros"] for r in result.evaluate_metrics_clientapp.values()] == pytest.approx(scheduled)
    assert [r["sparsity"] for r in result.train_metrics_clientapp.values()] == pytest.approx(scheduled)
    assert "train-loss" in result.train_metrics_clientapp[1]


def test_one_payload_travels_and_shrinks_with_the_network() -> None:
    nodes = grid()
    federation = strategy()
    federation.start(nodes, initial(), ROUNDS, train_config=ConfigRecord({"lr": 0.1}))
    for message in nodes.sent:
        (array,) = message.content.array_records["arrays"].values()
        assert (array.dtype, array.stype, array.shape) == ("uint8", "fedsparsify.message", (len(array.data),))
    assert [m.content.config_records["config"]["server-round"] for m in nodes.sent[:3]] == [ROUNDS] * 3  # one record
    assert nodes.sent[0].content.config_records["config"]["lr"] == 0.1
    dense, *_, sparse = ([r[w] for w in ("bytes-down", "bytes-up", "bytes-evaluate")] for r in federation.history)
    assert all(after < 0.6 * before for before, after in zip(dense, sparse, strict=True))


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_pruned_parameters_stay_exactly_zero_in_an_unchanged_training_loop(optimiser: str) -> None:
    model, mask = network(), np.arange(LAYOUT.n) % 3 == 0
    start = LAYOUT.read(model)[0]
    LAYOUT.write(model, np.where(mask, start, 0).astype(np.float32))
    guard = Guard(model, LAYOUT, mask)
    train(model, OPTIMISERS[optimiser](model.parameters()), 0, 1)
    trained = LAYOUT.read(model)[0]
    assert (trained[~mask] == 0).all() and (trained[mask] != start[mask]).mean() > 0.8
    guard.finish(model)
    train(model, OPTIMISERS[optimiser](model.parameters()), 0, 2)  # left to itself again
    assert (LAYOUT.read(model)[0][~mask] != 0).mean() > 0.3


def test_what_an_optimiser_brings_along_is_undone_at_the_end() -> None:
    model, mask = network(), np.arange(LAYOUT.n) % 3 == 0
    optimiser = OPTIMISERS["sgd"](model.parameters())
    train(model, optimiser, 0, 1)
    LAYOUT.write(model, np.where(mask, LAYOUT.read(model)[0], 0).astype(np.float32))
    guard = Guard(model, LAYOUT, mask)
    train(model, optimiser, 0, 2)
    assert (LAYOUT.read(model)[0][~mask] != 0).any()  # momentum of before
    guard.finish(model)
    assert (LAYOUT.read(model)[0][~mask] == 0).all()


def test_gradients_of_pruned_rows_of_an_embedding_are_dropped_too() -> None:
    model = nn.Embedding(6, 2, sparse=True)
    layout = ParameterLayout.of(model)
    mask = np.array([True, False] * 6)
    start = np.where(mask, layout.read(model)[0], 0).astype(np.float32)
    layout.write(model, start)
    Guard(model, layout, mask)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.tensor([1, 1, 4])).sum().backward()
    optimiser.step()
    moved = layout.read(model)[0] != start
    assert np.flatnonzero(moved).tolist() == [2, 8]


def test_a_second_guard_takes_the_place_of_the_first() -> None:
    model = nn.Linear(2, 1, bias=False)
    layout = ParameterLayout.of(model)
    Guard(model, layout, np.array([False, True]))
    Guard(model, layout, np.array([True, False]))
    model(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad is not None and model.weight.grad.tolist() == [[1.0, 0.0]]


def test_a_model_to_be_evaluated_is_loaded_without_a_guard_and_has_no_update() -> None:
    federation, nodes = strategy(), grid()
    federation.start(nodes, initial(), ROUNDS)
    message = nodes.sent[-1]
    model = network()
    sparse = SparseModel.receive(message, model)
    np.testing.assert_array_equal(LAYOUT.read(model)[0], weights(federation.arrays))
    train(model, OPTIMISERS["sgd"](model.parameters()), 0, 1)
    assert (LAYOUT.read(model)[0] == 0).mean() < 0.5 < sparse.sparsity
    with pytest.raises(ArgumentError, match="to be evaluated"):
        sparse.reply(message, num_examples=1)


def repacked(change: Callable[[Encoded, Reference], bytes]) -> Answer:
    """An honest node whose update is changed on its way."""

    def answer(message: Message) -> Message | None:
        reply = node(1)(message)
        if reply is None or message.metadata.message_type != "train":
            return reply
        (array,) = message.content.array_records["arrays"].values()
        reference = Reference(decode(array.data, LAYOUT).model, LAYOUT)
        (update,) = reply.content.array_records["arrays"].values()
        data = change(decode(update.data, LAYOUT, reference), reference)
        arrays = ArrayRecord({"payload": Array("uint8", (len(data),), "fedsparsify.message", data)})
        return Message(RecordDict({"arrays": arrays, **reply.content.metric_records}), reply_to=message)

    return answer


def bad_model(value: float) -> Answer:
    def poison(update: Encoded, reference: Reference) -> bytes:
        w = update.model.w.copy()
        w[np.flatnonzero(update.model.mask)[0]] = value
        return encode(
            Encoded(Kind.UPDATE, update.round, ModelState(w, update.model.mask, update.model.buffers), 1, 5),
            *(LAYOUT, reference),
        )

    return repacked(poison)


def instead(content: Callable[[], RecordDict]) -> Answer:
    return lambda m: Message(content(), reply_to=m) if m.metadata.message_type == "train" else node(1)(m)


def dense_reply() -> RecordDict:
    return RecordDict({"arrays": initial(), "metrics": MetricRecord({"num-examples": 5})})


def failing(message: Message) -> Message:
    return Message(Error(0, "boom\nroot: forged line"), reply_to=message)


def other_round(update: Encoded, reference: Reference) -> bytes:
    return encode(Encoded(Kind.UPDATE, update.round + 1, update.model, 1, 5), LAYOUT, reference)


def other_client(update: Encoded, reference: Reference) -> bytes:
    return encode(Encoded(Kind.UPDATE, update.round, update.model, 2, 5), LAYOUT, reference)


def no_metrics(message: Message) -> Message | None:
    reply = node(1)(message)
    return reply and Message(RecordDict(dict(reply.content.array_records)), reply_to=message)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (bad_model(np.nan), "finite"),
        (bad_model(np.inf), "finite"),
        (repacked(other_round), "of round 2, but this is round 1"),
        (repacked(other_client), "comes from client 2"),
        (repacked(lambda update, _: b"garbage" * 9), "magic"),
        (repacked(lambda update, _: b"\0" * (largest_message(LAYOUT) + 1)), "are more than the"),
        (instead(dense_reply), "one payload of FedSparsify is due, not 9 arrays"),
        (instead(RecordDict), "one MetricRecord with num-examples"),
        (no_metrics, "one MetricRecord with num-examples"),
        (failing, "boom root: forged line"),
        (lambda message: None, "no reply in time"),
    ],
)
def test_a_bad_reply_is_named_and_left_out(bad: Answer, why: str, caplog: pytest.LogCaptureFixture) -> None:
    without = strategy(num_rounds=1)
    without.start(Nodes({10: node(0), 12: node(2)}), initial(), 1)
    federation = strategy(num_rounds=1)
    logging.getLogger("flwr").propagate = True
    with caplog.at_level(logging.WARNING, "flwr"):
        result = federation.start(grid(n11=bad), initial(), 1)
    np.testing.assert_array_equal(weights(result.arrays), weights(without.arrays))
    failures = federation.history[0]["failures"]
    assert list(failures) == [11]
    assert any("node 11 is left out" in text and failures[11] in text for text in caplog.messages)
    assert re.search(why, failures[11])


def test_metrics_that_cannot_be_averaged_with_the_others_cost_no_model(caplog: pytest.LogCaptureFixture) -> None:
    def other_metrics(message: Message) -> Message | None:
        reply = node(0)(message)
        assert reply is not None
        metrics = MetricRecord({**next(iter(reply.content.metric_records.values())), "extra": [1.0, 2.0]})
        return Message(RecordDict({**reply.content.array_records, "metrics": metrics}), reply_to=message)

    usual, federation = strategy(num_rounds=1), strategy(num_rounds=1)
    wanted = usual.start(grid(), initial(), 1)
    result = federation.start(grid(n10=other_metrics), initial(), 1)
    np.testing.assert_array_equal(weights(result.arrays), weights(wanted.arrays))
    assert "extra" not in result.train_metrics_clientapp[1] and "train-loss" in result.train_metrics_clientapp[1]


def test_bad_replies_to_an_evaluation_are_left_out() -> None:
    def bad(content: RecordDict | Error) -> Answer:
        return lambda m: node(1)(m) if m.metadata.message_type == "train" else Message(content, reply_to=m)

    nodes = grid(n11=bad(RecordDict({"metrics": MetricRecord({"zeros": 9.0})})), n12=bad(Error(0)))
    result = strategy(num_rounds=1).start(nodes, initial(), 1)
    assert result.evaluate_metrics_clientapp[1]["zeros"] == pytest.approx(0.8, abs=0.01)


def test_too_few_usable_replies_end_the_run_and_keep_the_last_model() -> None:
    def from_round_two(message: Message) -> Message | None:
        late = message.content.config_records["config"]["server-round"] == 2
        return failing(message) if late else node(1)(message)

    wanted = strategy(num_rounds=ROUNDS)
    wanted.start(grid(), initial(), ROUNDS)
    federation = strategy(min_train_nodes=3)
    with pytest.raises(TooFewClientsError, match=r"round 2: 2 of 3 clients .* but 3 are needed .*boom"):
        federation.start(grid(n11=from_round_two), initial(), ROUNDS)
    assert [r["round"] for r in federation.history] == [1]
    assert (weights(federation.arrays) != weights(initial())).any()


def test_nodes_are_not_waited_for_without_end() -> None:
    federation = strategy(min_available_nodes=4)
    with pytest.raises(
        TooFewClientsError, match=r"round 1: 3 nodes are connected after 0 s, but 4 are needed to train"
    ):
        federation.start(grid(), initial(), ROUNDS)


def test_a_fraction_of_the_nodes_takes_part_by_seed() -> None:
    def chosen(seed: int) -> list[list[int]]:
        federation = strategy(fraction_train=0.67, min_train_nodes=1, seed=seed, fraction_evaluate=0.0)
        federation.start(grid(), initial(), ROUNDS)
        return [record["nodes"] for record in federation.history]

    assert chosen(1) == chosen(1) != chosen(2)
    assert all(len(nodes) == 2 and nodes == sorted(nodes) for nodes in chosen(1))


def test_the_second_start_of_a_strategy_begins_anew() -> None:
    federation = strategy(num_rounds=None)
    first = federation.start(grid(), initial(), 2)
    again = federation.start(grid(), initial(), 2)
    np.testing.assert_array_equal(weights(first.arrays), weights(again.arrays))
    assert len(federation.history) == 2


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"final_sparsity": 1.0}, "final = 1.0"),
        ({"method": "fedsparsify"}, "unknown; did you mean fedsparsify-"),
        ({"method": "flash"}, "unknown"),
        ({"scope": "layer"}, 'scope = "layer"'),
        ({"prunable": "biases"}, "biases"),
        ({"merge": "mean"}, 'merge = "mean"'),
        ({"start_round": 9}, "start_round = 9"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_runs(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(why)):
        strategy(**options)


def test_a_wrong_start_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"num_rounds=4\), but FedSparsify\(num_rounds=3"):
        strategy().start(grid(), initial(), 4)
    with pytest.raises(ArgumentError, match="do not fit Net"):
        strategy().start(grid(), ArrayRecord(nn.Linear(2, 2).state_dict()), ROUNDS)
    broken = network()
    nn.init.constant_(broken[0].weight, float("nan"))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="NaN"):
        strategy().start(grid(), ArrayRecord(broken.state_dict()), ROUNDS)


def first_message(model: nn.Module | None = None) -> Message:
    model = model or network()
    nodes = Nodes({10: lambda message: None})
    federation = FedSparsify(model, min_train_nodes=1, min_available_nodes=1, node_timeout=0.0)
    with pytest.raises(TooFewClientsError):
        federation.start(nodes, ArrayRecord(model.state_dict()), 1)
    return nodes.sent[0]


def test_a_client_refuses_what_is_not_its_own_networks() -> None:
    message = first_message()
    with pytest.raises(WireError, match="another network"):
        SparseModel.receive(message, nn.Linear(4, 4))
    message.content.config_records["fedsparsify"]["sparsity"] = "much"
    with pytest.raises(WireError, match="orders: sparsity"):
        SparseModel.receive(message, network())
    del message.content["fedsparsify"]
    with pytest.raises(WireError, match="no orders of FedSparsify"):
        SparseModel.receive(message, network())


def test_frozen_parameters_must_be_the_same_at_both_ends_because_they_do_not_travel() -> None:
    def frozen(value: float) -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
        nn.init.constant_(model[0].weight, value)  # type: ignore[arg-type]
        nn.init.zeros_(model[0].bias)  # type: ignore[arg-type]
        model[0].requires_grad_(False)
        return model

    message = first_message(frozen(1.0))
    SparseModel.receive(message, frozen(1.0))
    with pytest.raises(WireError, match="frozen parameters"):
        SparseModel.receive(message, frozen(2.0))
    assert frozen_checksum(network()) == 0


def test_a_client_without_examples_is_told() -> None:
    message = first_message()
    with pytest.raises(ArgumentError, match="num_examples = 0"):
        SparseModel.receive(message, network()).reply(message, num_examples=0)


def test_orders_are_read_as_they_were_written() -> None:
    orders = Orders("fedsparsify-local", 0.5, 2, 77, "per-layer", "magnitude", "weights", "nonzero")
    assert Orders.read(ConfigRecord(orders.to_dict())) == orders


def test_without_flower_the_pip_line_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    name = "fedsparsify.federation.flower"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "flwr" else there(n))
    with pytest.raises(MissingExtraError, match=r"pip install 'fedsparsify\[flower\]'"):
        importlib.import_module(name)
