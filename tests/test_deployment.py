"""Both ends of a deployment without Flower between them: what is refused, and sites that have data of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsparsify import deployment, runs
from fedsparsify.config import load_settings
from fedsparsify.errors import ConfigError, FedSparsifyError
from fedsparsify.experiment import prepare
from fedsparsify.federation import Reply
from fedsparsify.site_worker import _Worker
from fedsparsify.state import Floats

SETTINGS = """
[data]
name = "clinic:load"
[partition]
kind = "sites"
[federation]
clients = 2
[model]
name = "2-fc"
inputs = 4
hidden = 8
classes = 3
[method]
name = "fedsparsify-global"
[schedule]
final = 0.5
[train]
lr = 0.1
epochs = 1
[run]
rounds = 2
[deployment]
sites = ["north", "south"]
"""
CLINIC = """
import os
import numpy as np
def load():
    rng = np.random.default_rng(int(os.environ["CLINIC"]))
    x = rng.normal(size=(40, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 1)
    return (x, y), (x, y)
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "settings.toml").write_text(SETTINGS)
    (tmp_path / "clinic.py").write_text(CLINIC)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Direct:
    """Asks workers of sites in this process, each in its own environment."""

    def __init__(self, app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        facts = {"folder": str(app), "settings": "settings.toml", "set": [], "data-dir": "", "threads": 1}
        self.workers = [_Worker(facts) for _ in range(2)]
        self._monkeypatch = monkeypatch

    def exchange(self, round: int, broadcasts: Mapping[int, bytes]) -> Iterator[Reply]:
        for k, payload in broadcasts.items():
            self._monkeypatch.setenv("CLINIC", str(10 + k))
            task = json.dumps({"client": k, "round": round, "calibration": ""}).encode()
            answer = self.workers[k].answer(task + b"\n" + payload)
            yield Reply(k, answer[1:]) if answer[:1] == b"\x00" else Reply(k, None, answer[1:].decode())

    def carried(self) -> Mapping[str, Floats]:
        return {}

    def restore(self, carried: Mapping[str, Floats]) -> None: ...


def test_each_site_trains_on_its_own_data_and_the_server_on_none(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLINIC", "1")
    prepared = prepare(load_settings(app / "settings.toml"), "here", deployed=True)
    assert prepared.clients == 2 and prepared.split.counts == []
    way = Direct(app, monkeypatch)
    run = runs.start(prepared, app / "run", [], lambda layout, calibration: way)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["failures"] for r in records] == [[], [], []]
    assert records[-1]["sparsity"] == pytest.approx(0.5, abs=0.01)
    # The same federation from Python, where the data are given.
    held = []
    for site in (10, 11):
        monkeypatch.setenv("CLINIC", str(site))
        import clinic  # type: ignore[import-not-found]

        held.append(clinic.load()[0])
    monkeypatch.setenv("CLINIC", "1")
    from fedsparsify import models

    settings: dict[str, Any] = {"run": {"rounds": 2}, "schedule": {"final": 0.5}, "train": {"lr": 0.1, "epochs": 1}}
    network = models.build("2-fc", 1, inputs=4, hidden=8, classes=3)
    same = runs.federate(model=network, clients=held, test=clinic.load()[1], settings=settings, out=app / "same")
    assert (run / "model.fsp").read_bytes() == (same / "model.fsp").read_bytes()


def test_own_data_are_for_deployments_only(app: Path) -> None:
    with pytest.raises(
        ConfigError, match=r'partition\.kind = "sites": each site has its own data, so this is for a depl'
    ):
        prepare(load_settings(app / "settings.toml", ["data.name=digits", "model.inputs=64"]), "here")


def test_a_site_tells_what_is_wrong_and_nothing_of_others_errors(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    way = Direct(app, monkeypatch)
    (reply,) = way.exchange(1, {0: b"no broadcast"})
    assert "fewer" in reply.failure
    (app / "clinic.py").write_text("def load():\n    raise MemoryError('patient 17')\n")
    other = Direct(app, monkeypatch)
    monkeypatch.delitem(__import__("sys").modules, "clinic", raising=False)
    (reply,) = other.exchange(1, {0: b"no broadcast"})
    assert reply.payload is None and reply.failure


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["federation.clients=3"], r"federation\.clients = 3, but deployment\.sites names 2: make them as many"),
        (['deployment.sites=["a", "a"]'], r"deployment\.sites names a site twice: a, a"),
        (["encryption.key=clients.key"], r"encryption\.key names a file here, and the coordinator must have no key"),
        (["deployment.sites=[]"], r'partition\.kind = "sites" needs their names'),
    ],
)
def test_a_server_refuses_settings_that_cannot_work(app: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        deployment._check(load_settings(app / "settings.toml", overrides), "settings.toml")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"set": "run.rounds='5"}, r"the run's set = .* is malformed \(No closing quotation\): close its quotes"),
        ({"settings": 3}, r"the run's settings = 3 must be a text in quotes"),
        ({"settings": "none.toml"}, r"none\.toml cannot be read"),
        ({"resume": True}, r"resume = true needs the run's directory"),
    ],
)
def test_a_wrong_run_configuration_is_told(
    app: Path, config: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLINIC", "1")
    with pytest.raises(FedSparsifyError, match=message):
        deployment._serve(app, lambda **_: None, config)  # type: ignore[arg-type]


def test_the_largest_reply_is_larger_than_any_that_can_be_right() -> None:
    from torch import nn

    from fedsparsify.layout import ParameterLayout
    from fedsparsify.state import ModelState
    from fedsparsify.wire import Kind, Message, encode

    layout = ParameterLayout.of(nn.Sequential(nn.Linear(50, 40), nn.BatchNorm1d(40)))
    noise = [np.random.default_rng(k).bytes(4 * layout.n) for k in range(5)]
    values = [np.frombuffer(n, np.float32).copy() for n in noise]
    for vector in values:
        vector[~np.isfinite(vector)] = 0
    model = ModelState(values[0], np.ones(layout.n, np.bool_), np.zeros(layout.b, np.float32))
    message = Message(Kind.UPDATE, 1, model, 0, 1, {}, memory={f"v{k}": values[k] for k in range(1, 5)})
    assert len(encode(message, layout)) < deployment._largest(layout)
