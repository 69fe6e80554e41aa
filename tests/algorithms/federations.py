"""A tiny federation of any method on a synthetic problem, with the real engine, simulator and messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from fedsparsify.algorithms import Method
from fedsparsify.config import Settings, settings_from
from fedsparsify.data import Dataset
from fedsparsify.experiment import make_method
from fedsparsify.federation import Federation, Observer, Reply, Simulator, Transport
from fedsparsify.federation.engine import Record
from fedsparsify.layout import ParameterLayout
from fedsparsify.models import build_from
from fedsparsify.sparse import Calibration, LayerTimes
from fedsparsify.state import ClientUpdate, Floats, ModelState, ServerState
from fedsparsify.tune import TuneSettings

ROUNDS = 4

# Not this machine's figures: where the backend is "auto", torch trains dense rounds and native kernels sparse ones.
_TIMES = LayerTimes(torch=1.5, dense=2.0, sparse=(0.1, 2.5))
CALIBRATION = Calibration("test", (0.0, 1.0), _TIMES, _TIMES, torch_step=0.001)

Wrap = Callable[[Transport], Transport]


def dense_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 3))


def batch_norm_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )


def examples(n: int, seed: int) -> Dataset:
    """Three classes of noisy 4x4 pictures."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(3, 1, 4, 4))
    y = rng.integers(0, 3, n)
    return Dataset((centres[y] + 0.7 * rng.normal(size=(n, 1, 4, 4))).astype(np.float32), y, ("a", "b", "c"))


def population(*sizes: int) -> list[Dataset]:
    return [examples(size, seed=10 + k) for k, size in enumerate(sizes)]


@dataclass
class Outcome:
    """What can be seen of a run.

    Attributes:
        states: after round 0, 1, ...
        records: one for each state, without times.
        updates: for each round from 1, what was merged of each participant.
    """

    layout: ParameterLayout
    method: Method
    states: list[ServerState] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    updates: dict[int, dict[int, ClientUpdate]] = field(default_factory=dict)

    def client_done(self, round: int, done: int, total: int) -> None:
        """Nothing to keep."""

    def round_done(self, state: ServerState, record: Record) -> None:
        self.states.append(state)
        self.records.append({key: value for key, value in record.items() if not key.startswith("seconds")})

    @property
    def bits(self) -> list[tuple[int, bytes, bytes, bytes, dict[str, bytes]]]:
        return [bits_of(state) for state in self.states]


def bits_of(state: ServerState) -> tuple[int, bytes, bytes, bytes, dict[str, bytes]]:
    model = state.model
    memory = {name: vector.tobytes() for name, vector in state.memory.items()}
    return state.round, model.w.tobytes(), model.mask.tobytes(), model.buffers.tobytes(), memory


class Wrapped:
    """A transport around another one, to be changed by tests."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner

    def exchange(self, round: int, broadcasts: Mapping[int, bytes]) -> Iterator[Reply]:
        return self.inner.exchange(round, broadcasts)

    def carried(self) -> Mapping[str, Floats]:
        return self.inner.carried()

    def restore(self, carried: Mapping[str, Floats]) -> None:
        self.inner.restore(carried)


def _overheard(method: Method, outcome: Outcome) -> Method:
    """The same method, whose usable updates are kept."""

    def server_update(state: ServerState, updates: Iterable[ClientUpdate], t: int) -> ServerState:
        def passing() -> Iterator[ClientUpdate]:
            for update in updates:
                outcome.updates.setdefault(t, {})[update.client] = update
                yield update

        return method.server_update(state, passing(), t)

    return replace(method, server_update=server_update)


@dataclass(frozen=True)
class Setup:
    """A method on a network with a backend.

    Attributes:
        method: tables of a configuration: ``method``, and ``purge`` where it is not the default.
        network: makes the network.
        backend: ``train.backend``.
    """

    method: Mapping[str, Mapping[str, Any]]
    network: Callable[[], nn.Module]
    backend: str

    @property
    def settings(self) -> Settings:
        tables = {
            "run": {"rounds": ROUNDS},
            "data": {"name": "synthetic"},
            "model": {"name": "tiny"},
            "schedule": {"final": 0.75},
            "train": {
                "lr": 0.1,
                "epochs": 1,
                "batch_size": 8,
                "momentum": 0.5,
                "device": "cpu",
                "backend": self.backend,
            },
        }
        return settings_from({**tables, **self.method}, "test")

    def run(
        self,
        *,
        seed: int = 1,
        workers: int = 1,
        clients: Sequence[Dataset] | None = None,
        participation: float = 0.75,
        rounds: int = ROUNDS,
        start: ServerState | None = None,
        initial_seed: int | None = None,
        observers: Sequence[Observer] = (),
        wrap: Wrap = lambda transport: transport,
    ) -> Outcome:
        """Run from the initial model, or after ``start``, up to round ``rounds``."""
        settings = self.settings
        module = build_from(self.network, seed if initial_seed is None else initial_seed)
        layout = ParameterLayout.of(module)
        w, buffers = layout.read(module)
        outcome = Outcome(layout, make_method(settings, layout))
        # The last client has a single example; with three of four taking part it is there in most rounds.
        parts = population(23, 40, 9, 1) if clients is None else clients
        train = TuneSettings(**settings.train.model_dump())
        test = examples(60, seed=99)
        coding = settings.wire.uplink
        with Simulator(module, outcome.method, parts, test, train, seed, workers, CALIBRATION, coding) as simulator:
            assert simulator.workers == workers
            Federation(
                method=_overheard(outcome.method, outcome),
                layout=layout,
                transport=wrap(simulator),
                evaluate=simulator.evaluate,
                clients=len(parts),
                rounds=rounds,
                seed=seed,
                participation=participation,
                link_memory=settings.wire.link_memory << 20,
                trends=settings.wire.uplink == "float32",
            ).run(
                start or ServerState(0, ModelState(w, np.ones(layout.n, np.bool_), buffers)),
                [outcome, *observers],
                recorded=start is not None,
            )
        return outcome
