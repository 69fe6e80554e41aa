"""Every method goes through the same checks, on small networks, with the real engine, simulator and messages."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsparsify import algorithms
from fedsparsify.data import Dataset
from fedsparsify.federation import Reply, RunDirectory, Transport
from fedsparsify.federation.checkpoint import States
from fedsparsify.federation.engine import Record
from fedsparsify.layout import ParameterLayout
from fedsparsify.merge import average_of, majority_of, merge_models
from fedsparsify.sparse import available
from fedsparsify.state import ClientUpdate, Floats, Mask, ModelState, ServerState
from fedsparsify.wire import Kind, Message, encode, request_full
from tests.algorithms.federations import (
    ROUNDS,
    Outcome,
    Setup,
    Wrapped,
    batch_norm_net,
    bits_of,
    dense_net,
    examples,
    population,
)

# Every method of the configurations is tried on all networks below; here are options that suit so few rounds.
OPTIONS: dict[str, dict[str, Any]] = {"feddst": {"every": 2, "ratio": 0.9, "stop": 1.0}, "prunefl": {"every": 2}}
METHODS: dict[str, Mapping[str, Mapping[str, Any]]] = {
    name.removeprefix("fedsparsify-"): {"method": {"name": name, **OPTIONS.get(name, {})}}
    for name in algorithms.METHODS
}
# Another scope or merge rule is one line too; it is tried on the first network.
VARIANTS: dict[str, Mapping[str, Mapping[str, Any]]] = {
    "global, per layer": {"method": {"name": "fedsparsify-global"}, "purge": {"scope": "per-layer"}},
    "global, weights only": {"method": {"name": "fedsparsify-global"}, "purge": {"prunable": "weights"}},
    "local, per layer": {"method": {"name": "fedsparsify-local"}, "purge": {"scope": "per-layer"}},
    "local, vote + nonzero": {"method": {"name": "fedsparsify-local", "merge": "majority-nonzero"}},
    "local, nonzero": {"method": {"name": "fedsparsify-local", "merge": "nonzero"}},
    "local, average": {"method": {"name": "fedsparsify-local", "merge": "average"}},
    "global, int8": {"method": {"name": "fedsparsify-global"}, "wire": {"uplink": "int8"}},
    "local, bfloat16": {"method": {"name": "fedsparsify-local"}, "wire": {"uplink": "bfloat16"}},
    "global, nothing remembered": {"method": {"name": "fedsparsify-global"}, "wire": {"link_memory": 0}},
}

# "auto" changes from torch to native kernels as the network shrinks, where these are built.
NETWORKS = {
    "dense": (dense_net, "auto"),
    "batch norm": (batch_norm_net, "torch"),
    **({"batch norm, native": (batch_norm_net, "native")} if available() else {}),
}

SETUPS = {
    f"{name}-{network}": Setup(method, *NETWORKS[network])
    for name, method in {**METHODS, **VARIANTS}.items()
    for network in (NETWORKS if name in METHODS else ["dense"])
}
if available():  # "auto" works in processes, native in threads: what clients keep takes another way
    SETUPS["global, int8-dense, native"] = Setup(VARIANTS["global, int8"], dense_net, "native")
every_setup = pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
_runs: dict[int, Outcome] = {}


def reference(setup: Setup) -> Outcome:
    """The run that others are compared with: seed 1, one worker, four clients of whom three take part in a round."""
    if id(setup) not in _runs:
        _runs[id(setup)] = setup.run()
    return _runs[id(setup)]


def survivors(setup: Setup, layout: ParameterLayout, sparsity: float, before: Mask) -> int:
    """How many parameters a purge must leave, counted from the settings: n - floor(s n) in each group."""
    purge = setup.settings.purge
    names = [slot for slot in layout.parameters if purge.prunable == "all" or len(slot.shape) > 1]
    groups = [[slot] for slot in names] if purge.scope == "per-layer" else [names]
    left = int(np.count_nonzero(before))
    for group in groups:
        size = sum(slot.size for slot in group)
        alive = sum(int(np.count_nonzero(before[slot.span])) for slot in group)
        left -= alive - min(alive, size - math.floor(sparsity * size))
    return left


@every_setup
def test_a_run_goes_through_and_learns(setup: Setup) -> None:
    run = reference(setup)
    assert [state.round for state in run.states] == list(range(ROUNDS + 1))
    asked_first = {"dense": 0, "server": 0, "one client": 1, "participants": 3}[run.method.starts]
    assert [len(record["participants"]) for record in run.records] == [asked_first, 3, 3, 3, 3]
    assert all(record["failures"] == [] for record in run.records)
    assert run.records[-1]["loss"] < run.records[0]["loss"]
    assert run.method.name == setup.settings.method.name


@pytest.mark.skipif(not available(), reason="the native kernels are not built")
def test_the_backend_changes_in_the_middle_of_a_run_with_auto() -> None:
    used = [record["backends"] for record in reference(SETUPS["global-dense"]).records[1:]]
    assert used == [{"native": 0, "torch": 3}] * 2 + [{"native": 3, "torch": 0}] * 2


def regrows(setup: Setup) -> bool:
    return reference(setup).method.regrows


@every_setup
def test_a_method_whose_masks_are_not_nested_says_so(setup: Setup) -> None:
    run = reference(setup)
    pairs = zip(run.states, run.states[1:], strict=False)
    came_back = sum(int(np.count_nonzero(after.model.mask & ~before.model.mask)) for before, after in pairs)
    assert (came_back > 0) == run.method.regrows == regrows(setup)


@pytest.mark.parametrize(
    "setup", [s for s in SETUPS.values() if not regrows(s)], ids=[k for k, s in SETUPS.items() if not regrows(s)]
)
def test_a_pruned_parameter_never_comes_back(setup: Setup) -> None:
    run = reference(setup)
    for before, after in zip(run.states, run.states[1:], strict=False):
        assert not (after.model.mask & ~before.model.mask).any()
        for update in run.updates[after.round].values():
            assert not (update.model.mask & ~before.model.mask).any()
    assert run.states[0].model.mask.all() == (run.method.starts == "dense")


class _Idle:
    """A client that learns nothing."""

    epochs = 1

    def tune(self, model: ModelState, **_: Any) -> ModelState:
        return model

    def gradient(self, model: ModelState, **_: Any) -> Floats:
        return np.zeros_like(model.w)

    def curvature(self, model: ModelState, **_: Any) -> Floats:
        return np.zeros_like(model.w)

    def random(self) -> np.random.Generator:
        return np.random.default_rng(1)

    def layer_seconds(self) -> list[float]:
        return [1.0] * 4


@pytest.mark.parametrize(
    "setup", [s for s in SETUPS.values() if not regrows(s)], ids=[k for k, s in SETUPS.items() if not regrows(s)]
)
def test_a_pruned_parameter_stays_pruned_among_survivors_that_are_zero_too(setup: Setup) -> None:
    run = reference(setup)
    n = run.layout.n
    # All magnitudes tie, and the pruned ones have the lower indices.
    start = ModelState(np.zeros(n, np.float32), np.arange(n) >= n // 4, run.states[0].model.buffers)
    sent = [model for _ in range(2) if isinstance(model := run.method.client_update(start, 2, _Idle()), ModelState)]
    assert len(sent) == 2
    after = run.method.server_update(ServerState(1, start), [ClientUpdate(k, 2, m, 5) for k, m in enumerate(sent)], 2)
    for model in (*sent, after.model):
        assert not (model.mask & ~start.mask).any()
    assert after.round == 2


@every_setup
def test_a_pruned_parameter_is_exactly_zero(setup: Setup) -> None:
    run = reference(setup)
    models = [state.model for state in run.states]
    models += [update.model for updates in run.updates.values() for update in updates.values()]
    for model in models:
        assert not model.w[~model.mask].any()
        assert np.isfinite(model.w).all()


@every_setup
def test_exactly_the_scheduled_number_is_kept_in_every_round(setup: Setup) -> None:
    run = reference(setup)
    for t in range(1, ROUNDS + 1):
        before, after = run.states[t - 1].model.mask, run.states[t].model.mask
        sparsity = run.method.schedule(t) if run.method.schedule else 0.0
        wanted = survivors(setup, run.layout, sparsity, np.ones_like(before) if run.method.regrows else before)
        sent = [int(np.count_nonzero(update.model.mask)) for update in run.updates[t].values()]
        if run.method.exact:
            assert np.count_nonzero(after) == wanted
            assert sent == [np.count_nonzero(before)] * 3  # clients do not prune
        else:
            assert sent == [wanted] * 3
            assert np.count_nonzero(after) <= sum(sent)
        assert run.records[t]["nonzero"] == np.count_nonzero(after)
    if run.method.schedule:
        assert run.method.schedule(ROUNDS) == 0.75
        assert np.count_nonzero(run.states[-1].model.mask) < 0.6 * run.layout.n
    else:
        assert run.states[-1].model.mask.all()


@every_setup
def test_the_same_seed_gives_the_same_bits(setup: Setup) -> None:
    run, again = reference(setup), setup.run()
    assert again.bits == run.bits
    assert again.records == run.records
    assert setup.run(seed=2, initial_seed=1).bits[1:] != run.bits[1:]


def test_what_is_remembered_changes_no_bit() -> None:
    forgetful, run = reference(SETUPS["global, nothing remembered-dense"]), reference(SETUPS["global-dense"])
    assert forgetful.bits == run.bits
    assert without_bytes(forgetful.records) == without_bytes(run.records)


class _Killed(Exception):
    pass


class _KilledAfter:
    """An observer that ends the run when a round is finished."""

    def __init__(self, round: int) -> None:
        self._round = round

    def client_done(self, round: int, done: int, total: int) -> None:
        """Go on."""

    def round_done(self, state: ServerState, record: Record) -> None:
        if state.round == self._round:
            raise _Killed


@every_setup
@pytest.mark.parametrize("stopped_after", [0, 2])
def test_a_resumed_run_gives_the_same_bits(setup: Setup, stopped_after: int, tmp_path: Path) -> None:
    run, digest = reference(setup), bytes(32)
    directory = RunDirectory.create(tmp_path / "run", "", {}, digest)
    directory.expect(States(run.layout))
    with pytest.raises(_Killed):
        setup.run(observers=[directory, _KilledAfter(stopped_after)])
    directory.close()

    reopened = RunDirectory.open(tmp_path / "run", digest)
    reopened.expect(States(run.layout))
    start = reopened.load()
    assert start is not None
    assert bits_of(start) == run.bits[stopped_after]
    # Another initial model: all that counts must come from the checkpoint.
    rest = setup.run(start=start, initial_seed=5, observers=[reopened])
    reopened.close()
    assert rest.bits == run.bits[stopped_after + 1 :]
    # Only bytes differ: both ends have forgotten what they held, so the first broadcast comes in full.
    assert without_bytes(rest.records) == without_bytes(run.records[stopped_after + 1 :])


def without_bytes(records: Sequence[Record]) -> list[Record]:
    return [{key: value for key, value in record.items() if not key.startswith("bytes")} for record in records]


class _Shuffling(Wrapped):
    """Delivers replies in another order than they came in."""

    moved = 0

    def exchange(self, round: int, broadcasts: Mapping[int, bytes]) -> Iterator[Reply]:
        replies = list(self.inner.exchange(round, broadcasts))
        shuffled = random.Random(round).sample(replies, len(replies))
        self.moved += shuffled != sorted(replies, key=lambda reply: reply.client)
        yield from shuffled


@every_setup
def test_the_order_of_replies_changes_no_bit(setup: Setup) -> None:
    shuffling: list[_Shuffling] = []

    def wrap(inner: Transport) -> Transport:
        shuffling.append(_Shuffling(inner))
        return shuffling[0]

    run = setup.run(wrap=wrap)
    assert shuffling[0].moved >= 2
    assert run.bits == reference(setup).bits
    assert run.records == reference(setup).records


@every_setup
@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_workers_changes_no_bit(setup: Setup, workers: int) -> None:
    run = setup.run(workers=workers)
    assert run.bits == reference(setup).bits
    assert run.records == reference(setup).records


@every_setup
def test_a_method_that_says_it_merges_an_average_or_a_vote_needs_nothing_else(setup: Setup) -> None:
    run = reference(setup)
    rule = {"average": average_of, "vote": majority_of, "models": None}[run.method.merges]
    if rule is None:
        return
    assert run.method.starts == "dense" and not any(run.method.sends(t) for t in range(ROUNDS + 1))
    for t in range(1, ROUNDS + 1):
        before, updates = run.states[t - 1], [update for _, update in sorted(run.updates[t].items())]
        merged = merge_models(updates, rule, before.model.mask)
        alone = ClientUpdate(0, t, merged, sum(update.num_examples for update in updates))
        after = run.method.server_update(before, iter([alone]), t)
        assert bits_of(after)[:4] == run.bits[t][:4]  # clients keep memory of their own


@every_setup
def test_one_client_alone_is_a_federation(setup: Setup) -> None:
    run = setup.run(clients=population(20), participation=1.0)
    before = run.states[-2].model.mask
    sparsity = run.method.schedule(ROUNDS) if run.method.schedule else 0.0
    before = np.ones_like(before) if run.method.regrows else before
    # Nobody outvotes it: the number is exact for local purging too.
    assert np.count_nonzero(run.states[-1].model.mask) == survivors(setup, run.layout, sparsity, before)
    assert [record["participants"] for record in run.records[1:]] == [[0]] * ROUNDS
    assert run.records[-1]["client_drift"] is None
    assert run.records[-1]["mask_overlap"] is None
    if not run.method.averages:
        return
    own = run.updates[ROUNDS][0].model
    mask = run.states[-1].model.mask
    assert run.states[-1].model.w[mask].tobytes() == own.w[mask].tobytes()
    assert run.states[-1].model.buffers.tobytes() == own.buffers.tobytes()


@every_setup
def test_a_client_with_one_example_takes_part(setup: Setup) -> None:
    run = setup.run(clients=population(1, 1, 30), participation=1.0, rounds=2)
    assert [record["failures"] for record in run.records] == [[], [], []]
    assert [update.num_examples for update in run.updates[2].values()].count(1) == 2
    start = run.states[0].model.w
    assert all(not np.array_equal(update.model.w, start) for update in run.updates[1].values())
    assert np.isfinite(run.states[-1].model.w).all()


def sent(update: ClientUpdate, **changes: Any) -> bytes:
    """The message that a client would send, with some fields changed; the layout is given as ``layout``."""
    layout = changes.pop("layout")
    known = {"round": update.round, "model": update.model, "client": update.client, "kind": Kind.UPDATE}
    return encode(Message(num_examples=update.num_examples, metrics=update.metrics, **{**known, **changes}), layout)


def with_nan(model: ModelState) -> ModelState:
    values = model.values.copy()
    values[-1] = np.nan
    return ModelState.of_values(values, model.mask, model.buffers)


def regrown(model: ModelState) -> ModelState:
    return ModelState(np.ones_like(model.w), np.ones_like(model.mask), model.buffers)


# What a client may do wrong -> its reply, made of a sound update, and the reason that the record must give.
REGROWS = "brings pruned parameters back"
Fault = tuple[Callable[[ClientUpdate, ParameterLayout], bytes | None], str]
FAULTS: dict[str, Fault] = {
    "fails": (lambda u, layout: None, "its machine is gone"),
    "is cut off": (lambda u, layout: sent(u, layout=layout)[:-1], "checksum:"),
    "sends nothing": (lambda u, layout: b"", "message: 0 bytes"),
    "sends NaN": (lambda u, layout: sent(u, model=with_nan(u.model), layout=layout), "values: "),
    "is late by a round": (
        lambda u, layout: sent(u, round=u.round - 1, layout=layout),
        "header: the update is of round 2, but this is round 3",
    ),
    "poses as another": (
        lambda u, layout: sent(u, client=u.client + 1, layout=layout),
        "header: the update says that it comes from client",
    ),
    "sends a broadcast": (
        lambda u, layout: encode(Message(Kind.BROADCAST, u.round, u.model), layout),
        "header: an update was expected",
    ),
    "asks for a full broadcast again and again": (
        lambda u, layout: request_full(layout, u.round, u.client),
        "header: an update was expected, not a message of kind request",
    ),
    "sends a vector that nobody asked for": (
        lambda u, layout: sent(u, memory={"score": u.model.w}, layout=layout),
        "memory: vectors ['score'] where [] are due",
    ),
    REGROWS: (lambda u, layout: sent(u, model=regrown(u.model), layout=layout), "mask: "),
}


class _Faulty(Wrapped):
    """Replaces one client's reply."""

    def __init__(self, inner: Transport, victim: int, payload: bytes | None) -> None:
        super().__init__(inner)
        self._victim, self._payload = victim, payload

    def exchange(self, round: int, broadcasts: Mapping[int, bytes]) -> Iterator[Reply]:
        for reply in self.inner.exchange(round, broadcasts):
            if reply.client == self._victim:
                yield Reply(reply.client, self._payload, "" if self._payload is not None else "its machine is gone")
            else:
                yield reply


@pytest.mark.parametrize(
    ("setup", "fault"),
    [
        pytest.param(setup, fault, id=f"{name}-{fault}")
        for name, setup in SETUPS.items()
        for fault in FAULTS
        if not (fault == REGROWS and (regrows(setup) or reference(setup).states[2].model.mask.all()))
    ],
)
def test_a_client_that_goes_wrong_is_named_and_left_out(setup: Setup, fault: str) -> None:
    run, (replace, reason) = reference(setup), FAULTS[fault]
    start = run.states[2]
    victim = run.records[3]["participants"][1]
    payload = replace(run.updates[3][victim], run.layout)
    hurt = setup.run(start=start, rounds=3, wrap=lambda inner: _Faulty(inner, victim, payload))
    (failure,) = hurt.records[0]["failures"]
    assert failure["client"] == victim
    assert failure["reason"].startswith(reason)
    assert victim in hurt.records[0]["participants"]

    others = [update for k, update in sorted(run.updates[3].items()) if k != victim]
    assert len(others) == 2
    assert hurt.bits[0][:4] == bits_of(run.method.server_update(start, others, 3))[:4]  # the rest is the clients'
    assert hurt.bits[0] != run.bits[3]


def _poisoned() -> Dataset:
    data = examples(9, seed=1)
    return Dataset(np.full_like(data.x, np.nan), data.y)


def _misshapen() -> Dataset:
    return Dataset(np.ones((9, 1, 5, 7), np.float32), np.zeros(9, np.int64))


@every_setup
@pytest.mark.parametrize("data", [_poisoned, _misshapen])
def test_a_client_whose_own_training_goes_wrong_is_named_and_left_out(
    setup: Setup, data: Callable[[], Dataset]
) -> None:
    sound = population(12, 15)
    run = setup.run(clients=[sound[0], data(), sound[1]], participation=1.0, rounds=2)
    for record, state in zip(run.records[1:], run.states[1:], strict=True):
        assert [failure["client"] for failure in record["failures"]] == [1]
        assert record["failures"][0]["reason"]
        assert np.isfinite(state.model.w).all()
