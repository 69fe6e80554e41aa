"""Links: who is sent what, what both ends remember, and that neither changes a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedsparsify.algorithms import Method
from fedsparsify.algorithms.fedavg import fedavg
from fedsparsify.errors import StaleReferenceError, WireError
from fedsparsify.federation import Client, Held, Links, receive
from fedsparsify.federation.links import mean_step, step_between
from fedsparsify.layout import ParameterLayout
from fedsparsify.state import ModelState
from fedsparsify.tune import Tuned
from fedsparsify.wire import Coding, Kind, Message, decode, encode

LAYOUT = ParameterLayout.of(nn.Sequential(nn.Linear(60, 40), nn.BatchNorm1d(40)))
PLENTY = 1 << 20


class Steady:
    """In the place of a tuner: every client moves by a small step of its own, and some noise."""

    layout = LAYOUT
    device = torch.device("cpu")

    def __init__(self, clients: int) -> None:
        self.pull = np.random.default_rng(1).normal(size=(clients, LAYOUT.n)).astype(np.float32) * np.float32(0.01)
        self.trained: dict[int, ModelState] = {}

    def tune(self, start: ModelState, data: object, *, round: int, client: int, **_: Any) -> Tuned:
        noise = np.random.default_rng([round, client]).normal(size=LAYOUT.n).astype(np.float32) * np.float32(0.001)
        w = np.where(start.mask, start.w + self.pull[client] + noise, 0).astype(np.float32)
        self.trained[client] = ModelState(w, start.mask, start.buffers + 1)
        return Tuned(self.trained[client], 0.5, "torch")


class Federation:
    """A server and its clients, without training."""

    def __init__(self, clients: int, memory: int = PLENTY, method: Method | None = None, **client: Any) -> None:
        self.links = Links(LAYOUT, clients, memory, client.get("coding", "float32") == "float32")
        self.tuner = Steady(clients)
        self.clients = [
            Client(k, [0] * 5, method or fedavg(), self.tuner, seed=1, **client)  # type: ignore[arg-type]
            for k in range(clients)
        ]
        self.held = {k: Held() for k in range(clients)}
        w = np.random.default_rng(2).normal(size=LAYOUT.n).astype(np.float32)
        self.model = ModelState(w, np.ones(LAYOUT.n, np.bool_), np.zeros(LAYOUT.b, np.float32))
        self.t = 0
        self.arrived: dict[int, ModelState] = {}

    def round(self, clients: Iterable[int]) -> tuple[dict[int, bytes], dict[int, bytes]]:
        """Take one round; everyone answers, and what is not rounded arrives bit for bit."""
        self.t += 1
        chosen = list(clients)
        down, up = self.links.broadcast(self.t, self.model, chosen), {}
        for k in chosen:
            received = receive(down[k], self.held[k].reference, LAYOUT)
            assert received.message.model.w.tobytes() == self.model.w.tobytes()
            up[k], self.held[k] = self.clients[k].answer(received, self.held[k])
            update = decode(up[k], LAYOUT, self.links.reference(k), Kind.UPDATE)
            if self.clients[k].coding == "float32":
                assert update.model.at(self.model.mask).tobytes() == self.tuner.trained[k].values.tobytes()
            self.links.confirm(k, update.model)
            self.arrived[k] = update.model
        mask = self.model.mask & (np.random.default_rng(self.t).random(LAYOUT.n) < 0.9)
        w = np.where(mask, self.model.w + self.tuner.pull.mean(0), 0).astype(np.float32)
        self.model = ModelState(w, mask, self.model.buffers + 1)
        return down, up


def test_clients_that_hold_the_same_are_sent_the_same_object() -> None:
    federation = Federation(4)
    for clients in ([0, 1, 2, 3], [0, 1, 2, 3], [0, 1], [0, 1, 2, 3]):
        down, _ = federation.round(clients)
    assert down[0] is down[1] and down[2] is down[3]
    assert down[0] != down[2]  # these two were absent for a round


def test_a_broadcast_is_smaller_for_who_holds_an_earlier_one() -> None:
    federation = Federation(2)
    first, _ = federation.round([0, 1])
    federation.round([0])
    down, _ = federation.round([0, 1])
    plain = federation.links.plain(0)
    assert len(down[0]) <= len(down[1]) < 0.9 * len(plain) < 0.9 * len(first[0])


def test_updates_get_smaller_as_the_server_learns_how_a_client_moves() -> None:
    federation = Federation(1)
    sizes = []
    for _ in range(4):
        before = np.count_nonzero(federation.model.mask)
        sizes.append(len(federation.round([0])[1][0]) / before)
    assert sizes[2] < 0.9 * sizes[0]


def test_a_client_of_which_nothing_is_known_any_more_is_served_in_full() -> None:
    federation = Federation(2)
    for _ in range(3):
        federation.round([0, 1])
    federation.links.forget(0)
    down, _ = federation.round([0, 1])
    assert not decode(down[0], LAYOUT).refers
    with pytest.raises(StaleReferenceError):
        decode(down[1], LAYOUT)


def test_a_client_that_holds_another_broadcast_refuses_what_it_cannot_decode() -> None:
    federation = Federation(2)
    federation.round([0, 1])
    federation.round([0])
    down, _ = federation.round([0, 1])
    with pytest.raises(StaleReferenceError, match=r"header: the message refers to \w{8}, but the receiver holds \w{8}"):
        receive(down[1], federation.held[0].reference, LAYOUT)


def test_a_client_takes_broadcasts_only() -> None:
    federation = Federation(1)
    _, up = federation.round([0])
    with pytest.raises(WireError):
        receive(up[0], None, LAYOUT)
    model = encode(Message(Kind.MODEL, 0, federation.model), LAYOUT)
    with pytest.raises(WireError, match="header: a message of kind model where one of kind broadcast is due"):
        receive(model, None, LAYOUT)


@pytest.mark.parametrize("memory", [0, 5_000, 15_000, PLENTY])
def test_memory_is_bounded_and_changes_no_model(memory: int) -> None:
    federation = Federation(6, memory)
    rng = np.random.default_rng(2)
    for _ in range(12):
        federation.round(sorted(rng.choice(6, 2, replace=False).tolist()))
        federation.links._evict()  # as the next broadcast does first
        held = {id(link.reference): link.reference for link in federation.links._links.values()}.values()
        models = {id(reference.model): reference.model for reference in held}.values()
        size = sum(4 * len(model.values) + len(model.mask) for model in models)
        assert size + sum(4 * reference.model.nonzero for reference in held) <= memory
        trends = [link.trend for link in federation.links._links.values() if link.trend is not None]
        assert sum(4 * len(trend.values) for trend in trends) <= memory


def test_only_broadcasts_that_someone_holds_are_kept() -> None:
    federation = Federation(2)
    for _ in range(9):
        federation.round([0])
    (link,) = federation.links._links.values()
    assert link.round == 9
    assert link.reference.model._w is None  # survivors only


def test_the_mean_step_by_hand() -> None:
    none, mask = np.zeros(0, np.float32), np.array([True, True, False])
    start = ModelState(np.array([1, 2, 0], np.float32), mask, none)
    moved = ModelState(np.array([2, 4, 0], np.float32), mask, none)
    pruned = ModelState(np.array([2, 0, 0], np.float32), np.array([True, False, False]), none)
    first = mean_step(None, start, moved)
    assert first is not None and first.values.tolist() == [1, 2]
    second = mean_step(first, start, pruned)
    assert second is not None and second.values.tolist() == [1, 1]  # what it pruned itself has not moved


def test_steps_that_are_not_finite_are_forgotten() -> None:
    huge = np.array([3e38], np.float32)
    one, none = np.ones(1, np.bool_), np.zeros(0, np.float32)
    start, moved = ModelState(huge, one, none), ModelState(-huge, one, none)
    assert mean_step(None, start, moved) is None
    assert step_between(start, moved) is None


@pytest.mark.parametrize("coding", ["int8", "bfloat16"])
def test_what_rounding_leaves_out_is_sent_later(coding: Coding) -> None:
    federation = Federation(1, coding=coding)
    wanted = sent = np.zeros(LAYOUT.n)
    for _ in range(6):
        start = federation.model
        federation.round([0])
        wanted = wanted + np.where(start.mask, federation.tuner.trained[0].w - start.w, 0)
        sent = sent + np.where(start.mask, federation.arrived[0].w - start.w, 0)
    residual = federation.held[0].residual
    assert residual is not None
    alive = start.mask
    assert np.abs(residual.w[alive]).max() > 0  # something was rounded
    np.testing.assert_allclose((sent + residual.w)[alive], wanted[alive], atol=1e-6)
    # Without the residual the errors of six rounds would add up: to more than one round's rounding.
    assert np.abs((wanted - sent)[alive]).max() <= np.abs(residual.w).max() + 1e-6


@pytest.mark.parametrize("coding", ["int8", "bfloat16"])
def test_rounded_updates_are_the_same_whatever_is_remembered(coding: Coding) -> None:
    plenty, nothing = Federation(2, coding=coding), Federation(2, memory=0, coding=coding)
    for _ in range(4):
        plenty.round([0, 1])
        nothing.round([0, 1])
        assert plenty.arrived[1].w.tobytes() == nothing.arrived[1].w.tobytes()
    assert plenty.held[0].trend is None  # of no use, so nobody keeps it
