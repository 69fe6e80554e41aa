"""What tests of federations share: a small network, a client that steps instead of training, and an observer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from fedsparsify.algorithms import Method
from fedsparsify.algorithms.fedsparsify import fedsparsify_global, fedsparsify_local
from fedsparsify.federation import Federation, Transport
from fedsparsify.layout import ParameterLayout
from fedsparsify.purge import make_purge
from fedsparsify.schedules import PolynomialSchedule
from fedsparsify.state import ModelState, ServerState
from fedsparsify.tune import Tuned

LAYOUT = ParameterLayout.of(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
N = LAYOUT.n
ROUNDS = 4


def global_method() -> Method:
    return fedsparsify_global(PolynomialSchedule(0.0, 0.8, 1, ROUNDS), make_purge(LAYOUT))


def local_method() -> Method:
    return fedsparsify_local(PolynomialSchedule(0.0, 0.8, 1, ROUNDS), make_purge(LAYOUT))


class Stepping:
    """In the place of a tuner: adds a fixed step."""

    layout = LAYOUT
    device = torch.device("cpu")

    def tune(self, start: ModelState, data: object, *, round: int, client: int, **_: Any) -> Tuned:
        step = np.random.default_rng([round, client]).normal(size=N).astype(np.float32)
        w = np.where(start.mask, start.w + step, 0).astype(np.float32)
        return Tuned(ModelState(w, start.mask, start.buffers + np.float32(client)), 1.0 + client, "torch")


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


def same(a: ServerState, b: ServerState) -> bool:
    return (
        a.round == b.round
        and np.array_equal(a.model.w, b.model.w)
        and np.array_equal(a.model.mask, b.model.mask)
        and np.array_equal(a.model.buffers, b.model.buffers)
    )


def federation_of(method: Method, transport: Transport, **settings: Any) -> Federation:
    def evaluate(model: ModelState) -> dict[str, float]:
        return {"accuracy": float(np.abs(model.w).mean()), "loss": float(model.w.sum())}

    known: dict[str, Any] = {"clients": 4, "rounds": ROUNDS, "seed": 1, **settings}
    return Federation(method, LAYOUT, transport, evaluate, **known)
