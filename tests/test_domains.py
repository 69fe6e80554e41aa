"""The domains as a whole: their configurations, and scores by group from the data to the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedsparsify import federate
from fedsparsify.config import load_settings
from fedsparsify.data import Dataset
from fedsparsify.data.datasets import DATASETS
from fedsparsify.errors import ArgumentError, ConfigError, DataError
from fedsparsify.experiment import make_method, prepare
from fedsparsify.layout import ParameterLayout
from fedsparsify.models import build
from fedsparsify.plugins import check_options
from fedsparsify.report import load_run
from fedsparsify.tune import Evaluation, TuneSettings
from tests.commands import ROOT, call, write_config

CONFIGS = [
    path
    for path in sorted((ROOT / "configs").rglob("*.toml"))
    if path.parent.name != "fashion-mnist" and "[[sweep]]" not in path.read_text()
]


@pytest.mark.parametrize("path", CONFIGS, ids=[str(path.relative_to(ROOT / "configs")) for path in CONFIGS])
def test_every_configuration_names_data_builds_its_network_and_its_method(path: Path) -> None:
    settings = load_settings(path)
    assert settings.data.name == ("mri" if path.stem.startswith("mri-") else path.parent.name)
    check_options(DATASETS[settings.data.name], "data", settings.data.name, {**settings.data.options, "progress": True})
    module = build(settings.model.name, settings.run.seed, **settings.model.options)
    method = make_method(settings, ParameterLayout.of(module))
    TuneSettings(**settings.train.model_dump())
    assert settings.method.name in path.stem
    final = settings.schedule.final if "fedsparsify" in path.stem else 0.0
    assert final == (method.schedule(settings.run.rounds) if method.schedule else 0.0)
    if method.schedule:
        assert f"{final:.0%}" in path.read_text().splitlines()[0]
    rounds = 30 if path.parent.name == "cifar-10" else 10
    assert not path.stem.startswith("short-") or settings.run.rounds == rounds


def test_the_papers_settings_stand_in_the_configurations() -> None:
    """Model, learning rate, momentum, decay, batch, epochs, rounds, and classes of non-IID clients."""
    for name, expected in {
        "cifar-10": ("6-cnn", 0.005, 0.75, False, 0.0, 32, 4, 200, 5),
        "cifar-100": ("vgg-16", 0.01, 0.9, True, 5e-4, 128, 4, 200, 50),
        "imdb": ("lstm", 0.01, 0.0, False, 0.0, 32, 4, 200, 2),
    }.items():
        split = "" if name == "imdb" else "-non-iid"
        s = load_settings(ROOT / "configs" / name / f"fedsparsify-global{split}.toml")
        t, classes = s.train, s.partition.classes_per_client
        assert (s.model.name, t.lr, t.momentum, t.nesterov, t.weight_decay, t.batch_size, t.epochs) == expected[:7]
        assert (s.run.rounds, classes, s.federation.clients, s.schedule.final) == (*expected[7:], 10, 0.95)
    mri = load_settings(ROOT / "configs" / "brain-age" / "mri-fedsparsify-global.toml")
    assert (mri.model.options, mri.train.lr, mri.train.batch_size, mri.run.rounds) == ({}, 5e-5, 1, 40)


SITES = """
[run]
rounds = 2
workers = {workers}

[data]
name = "brain-age"

[partition]
kind = "groups"

[federation]
clients = {clients}

[model]
name = "2-fc"
inputs = 2
classes = 1
hidden = 4

[method]
name = "fedsparsify-global"

[schedule]
final = 0.5

[train]
lr = 0.01
epochs = 1
backend = "torch"
"""


@pytest.fixture
def people(tmp_path: Path) -> Path:
    rows = [f"{site},{20 + i},{i % 2},{i}" for site, n in (("Oulu", 20), ("ICBM", 15), ("Tiny", 4)) for i in range(n)]
    (tmp_path / "fcon1000.csv").write_text("\n".join(["site,age,sex,volume", *rows]))
    return tmp_path


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_over_sites_records_each_sites_error_in_years_and_reports_it(people: Path, workers: int) -> None:
    config = write_config(people, SITES.format(clients=0, workers=workers))
    outcome = call("run", config, "--data-dir", people, "--out", people / "out")
    assert outcome.code == 0, outcome.err
    run = load_run(people / "out")
    assert run.partition is not None and run.partition.counts == ((12,), (16,))
    assert run.unseen_groups == ("Tiny",) and list(run.last.groups) == ["ICBM", "Oulu", "Tiny"]
    # 3 + 4 + 4 examples of the test set
    total = (3 * run.last.groups["ICBM"] + 4 * run.last.groups["Oulu"] + 4 * run.last.groups["Tiny"]) / 11
    assert run.last.score == pytest.approx(total)
    assert 1 < run.last.score < 20, "years"
    page = (people / "out" / "report.html").read_text()
    assert "Mean absolute error by group" in page and "Tiny (unseen)" in page and "Oulu (unseen)" not in page


def test_another_number_of_clients_than_sites_is_refused(people: Path) -> None:
    config = write_config(people, SITES.format(clients=3, workers=1))
    outcome = call("run", config, "--data-dir", people, "--out", people / "out")
    assert outcome.code == 2 and "federation.clients = 3, but 2 groups have training examples: write 2" in outcome.err
    settings = load_settings(config, ["federation.clients=0", "federation.min_clients=3", f"data.dir={people}"])
    with pytest.raises(ConfigError, match=r"min_clients = 3 must be from 1 to 2"):
        prepare(settings, "here")


def test_evaluations_add_up_by_group() -> None:
    a = Evaluation(3, 1.0, 2.0, False, {0: (2, 1.0), 2: (1, 1.0)})
    b = Evaluation(2, 0.5, 1.0, False, {0: (1, 0.0), 1: (1, 1.0)})
    assert (a + b).groups == {0: (3, 1.0), 1: (1, 1.0), 2: (1, 1.0)}
    assert (a + b).by_group(["x", "y", "z"]) == {"x": 1 / 3, "y": 1.0, "z": 1.0}


def test_ones_own_groups_are_scored_too(tmp_path: Path) -> None:
    import torch

    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, 3)).astype(np.float32), np.arange(40) % 2
    data = Dataset(x, y, groups=y, group_names=("even", "odd"))
    out = federate(
        model=lambda: torch.nn.Linear(3, 2),
        clients=[data.take(np.arange(0, 40, 2))],
        test=data,
        settings={"train": {"lr": 0.1}, "run": {"rounds": 1}},
        out=tmp_path / "out",
    )
    record = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(record["groups"]) == {"even", "odd"}
    assert record["accuracy"] == pytest.approx(sum(record["groups"].values()) / 2)
    assert json.loads((out / "run.json").read_text())["unseen_groups"] == ["odd"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": np.zeros(3, np.int64)}, r"groups must be one whole number an example, not int64\[3\]"),
        ({"groups": np.zeros(4)}, "groups must be one whole number an example, not float64"),
        ({"groups": np.array([0, 1, 2, 0])}, "has groups from 0 to 2, but 2 group names: name every group"),
        ({"y_scale": 0.0}, r"has y_scale = 0\.0, which must be more than 0"),
    ],
)
def test_wrong_groups_are_refused(change: dict[str, object], message: str) -> None:
    x, y = np.zeros((4, 3), np.float32), np.array([0, 1, 0, 1])
    known: dict[str, object] = {"groups": y, "group_names": ("a", "b"), **change}
    bad = Dataset(x, y, **known)  # type: ignore[arg-type]
    with pytest.raises((DataError, ArgumentError), match=message):
        federate(model=lambda: build("2-fc", 1, inputs=3), clients=[bad], test=bad, settings={"train": {"lr": 0.1}})
