"""Settings and objects become runs: the Python API, and what it shares with the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import fedsparsify
from fedsparsify.algorithms import METHODS
from fedsparsify.config import load_settings
from fedsparsify.data import Dataset
from fedsparsify.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FederationError,
    FedSparsifyError,
    RunError,
    TooFewClientsError,
)
from fedsparsify.experiment import deal, prepare
from fedsparsify.runs import default_directory, start
from tests.commands import contents, records, write_config

SETTINGS: dict[str, dict[str, Any]] = {
    "run": {"rounds": 4, "workers": 1},
    "schedule": {"final": 0.5},
    "train": {"lr": 0.1, "backend": "torch", "epochs": 1},
}
Federate = Callable[..., Path]


class Network(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


class Wrapped(nn.Module):
    """A network for subclasses that fail at times."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()


def examples(seed: int, count: int = 40) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    x = np.random.default_rng(seed).normal(size=(count, 3))
    return x, (x.sum(axis=1) > 0).astype(int)


def settings(**tables: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {**SETTINGS, **{table: {**SETTINGS.get(table, {}), **keys} for table, keys in tables.items()}}


@pytest.fixture
def federate(tmp_path: Path) -> Federate:
    def run(out: str = "run", **arguments: Any) -> Path:
        known: dict[str, Any] = {
            "model": Network,
            "clients": [examples(k) for k in range(3)],
            "test": examples(9),
            "settings": SETTINGS,
            "out": tmp_path / out,
        }
        return fedsparsify.federate(**{**known, **arguments})

    return run


def test_federating_own_objects_writes_a_whole_run(federate: Federate, tmp_path: Path) -> None:
    run = federate()
    assert run == tmp_path / "run"
    assert set(contents(run)) == {"config.toml", "run.json", "metrics.jsonl", "checkpoint.fsp", "model.fsp"}
    kept = load_settings(run / "config.toml")
    assert (kept.method.name, kept.federation.clients) == ("fedsparsify-global", 3)
    info = json.loads((run / "run.json").read_text())
    assert info["partition"]["kind"] == "given" and [sum(row) for row in info["partition"]["counts"]] == [40] * 3
    assert info["layers"] == [["0.weight", [8, 3]], ["0.bias", [8]], ["2.weight", [2, 8]], ["2.bias", [2]]]
    assert info["schedule"] == pytest.approx([0, 0, 0.5 - 0.5 * (2 / 3) ** 3, 0.5 - 0.5 * (1 / 3) ** 3, 0.5])
    last = records(run)[-1]
    assert (last["round"], last["nonzero"]) == (4, 25)
    assert fedsparsify.load_run(run).last.score == last["accuracy"]


def test_one_seed_gives_one_result_in_every_form_of_data_and_another_seed_another(federate: Federate) -> None:
    expected = contents(federate())["model.fsp"]
    pairs = [examples(k) for k in range(3)]
    forms: list[list[Any]] = [
        [TensorDataset(torch.tensor(x), torch.tensor(y)) for x, y in pairs],
        [Dataset(x.astype(np.float32), y) for x, y in pairs],
        [(torch.tensor(x), torch.tensor(y)) for x, y in pairs],
    ]
    for index, clients in enumerate(forms):
        assert contents(federate(f"form{index}", clients=clients))["model.fsp"] == expected
    assert contents(federate("seed", settings=settings(run={"seed": 2})))["model.fsp"] != expected


@pytest.mark.parametrize("method", METHODS)
def test_the_number_of_workers_changes_no_bit(method: str, federate: Federate) -> None:
    runs = [
        federate(f"workers{count}", settings=settings(run={"workers": count}, method={"name": method}))
        for count in (1, 2, 4)
    ]
    first, *others = runs
    for other in others:
        assert contents(other)["model.fsp"] == contents(first)["model.fsp"]
        assert records(other) == records(first)


def test_a_network_that_is_given_itself_starts_from_its_weights_and_is_left_alone(federate: Federate) -> None:
    torch.manual_seed(7)
    network = Network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    run = federate(model=network)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    x, y = examples(9)
    with torch.no_grad():
        correct = (network(torch.tensor(x, dtype=torch.float32)).argmax(1) == torch.tensor(y)).float().mean()
    assert records(run)[0]["accuracy"] == pytest.approx(float(correct))


def test_regression_is_judged_by_its_mean_absolute_error(federate: Federate) -> None:
    def line(seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        x, _ = examples(seed, 100)
        return x, x.sum(axis=1)

    run = federate(model=lambda: nn.Linear(3, 1), clients=[line(k) for k in range(2)], test=line(9))
    first, *_, last = records(run)
    assert "accuracy" not in last
    assert last["mae"] < first["mae"]
    assert json.loads((run / "run.json").read_text())["partition"]["counts"] == [[100], [100]]


def test_resuming_goes_on_or_starts_and_leaves_a_finished_run_as_it_is(federate: Federate, tmp_path: Path) -> None:
    whole = federate("whole", resume=True)
    before = contents(whole)
    assert federate("whole", resume=True) == whole
    assert contents(whole) == before

    class Stop:
        """Raises in the middle of the third round."""

        def client_done(self, round: int, done: int, total: int) -> None:
            if round == 3:
                raise KeyboardInterrupt

        def round_done(self, state: object, record: object) -> None:
            pass

    with pytest.raises(KeyboardInterrupt):
        federate("part", observers=[Stop()])
    assert len(records(tmp_path / "part")) == 3
    federate("part", resume=True)
    assert contents(tmp_path / "part")["model.fsp"] == before["model.fsp"]
    assert records(tmp_path / "part", resumed=True) == records(whole, resumed=True)


def test_a_run_goes_on_with_the_same_data_and_network_only(federate: Federate) -> None:
    run = federate()
    before = contents(run)
    for changed in (
        {"settings": settings(train={"lr": 0.2})},
        {"model": lambda: nn.Linear(3, 2)},
        {"clients": [examples(k, 41) for k in range(3)]},
    ):
        with pytest.raises(CheckpointError, match="another configuration"):
            federate(resume=True, **changed)
    assert contents(run) == before


def test_a_run_from_python_is_resumed_in_python(federate: Federate) -> None:
    run = federate()
    with pytest.raises(CheckpointError, match=r"was started from Python: resume it there"):
        fedsparsify.resume(str(run))


def test_without_a_directory_runs_are_numbered(
    federate: Federate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fedsparsify.federate(
        model=Network, clients=[examples(1)], test=examples(2), settings=settings(run={"name": "mine", "rounds": 1})
    ) == Path("runs/mine")
    assert default_directory("mine") == Path("runs/mine-2")
    (tmp_path / "runs" / "mine-2").mkdir()
    assert default_directory("mine") == Path("runs/mine-3")
    assert default_directory("other") == Path("runs/other")


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"clients": []}, ConfigError, "settings: federation.clients = 0 must be at least 1"),
        ({"settings": {}}, ConfigError, "settings: train is missing: add the table"),
        ({"settings": settings(model={"name": "2-fc"})}, ConfigError, r"settings: \[model\] has no place here"),
        ({"settings": settings(data={"name": "x"})}, ConfigError, r"settings: \[data\] has no place here"),
        ({"settings": settings(partition={"kind": "iid"})}, ConfigError, r"settings: \[partition\] has no place here"),
        ({"settings": settings(federation={"clients": 9})}, ConfigError, "clients = 9, but 3 are given"),
        ({"settings": settings(federation={"min_clients": 4})}, ConfigError, "settings: federation.min_clients = 4"),
        ({"settings": {**SETTINGS, "federation": 3}}, ConfigError, "federation = 3 must be a table"),
        ({"settings": {**SETTINGS, "train": 3}}, ConfigError, "train = 3 must be a table"),
        ({"settings": settings(train={"lr": -1})}, ConfigError, "settings: train.lr = -1.0 must be more than 0"),
        ({"clients": [examples(1), "text"]}, DataError, "the data of client 1 is a str"),
        ({"test": (np.zeros((0, 3)), np.zeros(0))}, DataError, "the test set is empty"),
        ({"model": lambda: "network"}, ConfigError, "returned a str; it must return a torch.nn.Module"),
        ({"model": nn.ReLU}, FedSparsifyError, "no trainable parameter"),
        ({"model": lambda: nn.Linear(5, 2)}, FederationError, "cannot be evaluated on the test set: RuntimeError"),
        ({"model": lambda: nn.Linear(3, 1)}, FederationError, "cannot be evaluated on the test set: .*label 1"),
    ],
)
def test_what_cannot_be_federated_is_refused_before_anything_is_written(
    arguments: dict[str, Any], error: type[Exception], sentence: str, federate: Federate, tmp_path: Path
) -> None:
    with pytest.raises(error, match=sentence):
        federate(**arguments)
    assert not list(tmp_path.iterdir())


def test_a_directory_in_use_is_refused(federate: Federate) -> None:
    run = federate()
    before = contents(run)
    with pytest.raises(RunError, match="already in use"):
        federate()
    assert contents(run) == before


def test_too_few_clients_stop_a_run_that_can_go_on_when_they_are_back(federate: Federate, tmp_path: Path) -> None:
    away = tmp_path / "away"

    class Fragile(Wrapped):
        """Fails to train while a file exists."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training and away.exists():
                raise RuntimeError("no electricity")
            return self.network(x)  # type: ignore[no-any-return]

    class Outage:
        def client_done(self, round: int, done: int, total: int) -> None:
            pass

        def round_done(self, state: object, record: dict[str, Any]) -> None:
            if record["round"] == 2:
                away.touch()

    with pytest.raises(TooFewClientsError, match=r"round 3: 0 of 3 participants .*client 0: RuntimeError: no elec"):
        federate(model=Fragile, observers=[Outage()])
    assert [record["round"] for record in records(tmp_path / "run")] == [0, 1, 2]
    away.unlink()
    run = federate(model=Fragile, resume=True)
    whole = federate("whole", model=Fragile)
    assert contents(run)["model.fsp"] == contents(whole)["model.fsp"]
    assert records(run, resumed=True) == records(whole, resumed=True)


def test_a_client_that_fails_in_training_is_named_and_the_others_go_on(federate: Federate) -> None:
    class Picky(Wrapped):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training and float(x.max()) > 90:
                raise ValueError("a value above 90")
            return self.network(x)  # type: ignore[no-any-return]

    clients = [examples(0), (np.full((5, 3), 99.0), np.zeros(5, int)), examples(2)]
    run = federate(model=Picky, clients=clients)
    failures = [record["failures"] for record in records(run)]
    assert failures == [[]] + [[{"client": 1, "reason": "ValueError: a value above 90"}]] * 4
    assert records(run)[-1]["participants"] == [0, 1, 2]


def test_a_client_whose_training_overflows_is_left_out(federate: Federate) -> None:
    x, y = examples(1)
    run = federate(clients=[examples(0), (x * 1e30, y), examples(2)])
    for record in records(run)[1:]:
        assert [failure["client"] for failure in record["failures"]] == [1]
        assert "not a finite number" in record["failures"][0]["reason"]


def test_what_settings_describe_is_made_and_nothing_is_written(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    before = contents(tmp_path)
    experiment = prepare(load_settings(config, ["partition.kind=quantity"]), "here")
    assert [sum(row) for row in experiment.split.counts] == [len(client) for client in experiment.split.clients]
    assert sum(map(sum, experiment.split.counts)) == 1437
    assert experiment.split.class_names == tuple("0123456789")
    assert experiment.method.name == "fedsparsify-global"
    assert contents(tmp_path) == before
    start(experiment, tmp_path / "run")
    assert len(records(tmp_path / "run")) == 4


def test_a_split_depends_on_the_seed_only(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    one, same = (deal(load_settings(config, [f"run.workers={count}"])).counts for count in (1, 2))
    assert one == same
    assert one != deal(load_settings(config, ["run.seed=2"])).counts
