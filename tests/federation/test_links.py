"""Links: who is sent what, what both ends remember, and that neither changes a model."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from torch import nn

from fedsparsify.errors import StaleReferenceError, WireError
from fedsparsify.federation import Held, Links, receive
from fedsparsify.federation.links import mean_step, uplink_reference
from fedsparsify.layout import ParameterLayout
from fedsparsify.state import ModelState
from fedsparsify.wire import Kind, Message, decode, encode

LAYOUT = ParameterLayout.of(nn.Sequential(nn.Linear(60, 40), nn.BatchNorm1d(40)))
PLENTY = 1 << 20


class Federation:
    """A server and its clients, without training: clients move by fixed small steps."""

    def __init__(self, clients: int, memory: int = PLENTY) -> None:
        self.links = Links(LAYOUT, clients, memory)
        self.held = {k: Held() for k in range(clients)}
        self.rng = np.random.default_rng(1)
        self.model = ModelState(
            self.rng.normal(size=LAYOUT.n).astype(np.float32),
            np.ones(LAYOUT.n, np.bool_),
            np.zeros(LAYOUT.b, np.float32),
        )
        self.pull = self.rng.normal(size=(clients, LAYOUT.n)).astype(np.float32) * np.float32(0.01)
        self.t = 0

    def round(self, clients: Iterable[int]) -> tuple[dict[int, bytes], dict[int, bytes]]:
        """Take one round; everyone answers, and every model arrives bit for bit."""
        self.t += 1
        chosen = list(clients)
        down, up = self.links.broadcast(self.t, self.model, chosen), {}
        for k in chosen:
            received = receive(down[k], self.held[k].reference, LAYOUT)
            start = received.message.model
            assert start.w.tobytes() == self.model.w.tobytes()
            noise = self.rng.normal(size=LAYOUT.n).astype(np.float32) * np.float32(0.001)
            trained = ModelState(np.where(start.mask, start.w + self.pull[k] + noise, 0), start.mask, start.buffers + 1)
            trend = self.held[k].trend if received.message.refers and received.message.remember else None
            up[k] = encode(Message(Kind.UPDATE, self.t, trained, k, 5), LAYOUT, uplink_reference(start, trend, LAYOUT))
            trend = mean_step(trend, start, trained) if received.message.remember else None
            self.held[k] = Held(received.reference, trend)

            update = decode(up[k], LAYOUT, self.links.reference(k))
            assert update.model.w.tobytes() == trained.w.tobytes()
            self.links.confirm(k, update.model)
        mask = self.model.mask & (self.rng.random(LAYOUT.n) < 0.9)
        self.model = ModelState(np.where(mask, self.model.w + self.pull.mean(0), 0), mask, self.model.buffers + 1)
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
    with pytest.raises(WireError, match="header: a client expects a broadcast, not a message of kind model"):
        receive(model, None, LAYOUT)


@pytest.mark.parametrize("memory", [0, 5_000, 15_000, PLENTY])
def test_memory_is_bounded_and_changes_no_model(memory: int) -> None:
    federation = Federation(6, memory)
    rng = np.random.default_rng(2)
    for _ in range(12):
        federation.round(sorted(rng.choice(6, 2, replace=False).tolist()))
        stored = list(federation.links._sent.values())
        size = sum(4 * len(model.values) + len(model.mask) for model in stored)
        assert size <= memory or len(stored) == 1
        trends = [link.trend for link in federation.links._links.values() if link.trend is not None]
        assert sum(4 * len(trend.values) for trend in trends) <= memory


def test_only_broadcasts_that_someone_holds_are_kept() -> None:
    federation = Federation(2)
    for _ in range(9):
        federation.round([0])
    assert list(federation.links._sent) == [7, 8, 9]
    assert all(model._w is None for model in federation.links._sent.values())  # survivors only


def test_the_mean_step_by_hand() -> None:
    none, mask = np.zeros(0, np.float32), np.array([True, True, False])
    start = ModelState(np.array([1, 2, 0], np.float32), mask, none)
    moved = ModelState(np.array([2, 4, 0], np.float32), mask, none)
    pruned = ModelState(np.array([2, 0, 0], np.float32), np.array([True, False, False]), none)
    first = mean_step(None, start, moved)
    assert first.values.tolist() == [1, 2]
    assert mean_step(first, start, pruned).values.tolist() == [1, 1]  # what it pruned itself has not moved
