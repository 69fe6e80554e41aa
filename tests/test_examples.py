"""The examples run as they stand, and a configuration can name a user's own network and data."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedsparsify.report import load_run
from tests.commands import CONFIG, ROOT, call, contents, records, write_config

OWN = """
import numpy as np
import torch

def network(width=4):
    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Tanh(), torch.nn.Linear(width, 2))

def examples(rng, count):
    x = rng.normal(size=(count, 3)).astype(np.float32)
    return x, (x.sum(axis=1) > 0).astype(np.int64)

def data():
    rng = np.random.default_rng(5)
    return examples(rng, 200), examples(rng, 100)
"""


def test_own_data_trains_and_reports_in_under_forty_lines(tmp_path: Path) -> None:
    example = ROOT / "examples" / "own_data.py"
    assert len(example.read_text().splitlines()) < 40
    done = subprocess.run(
        [sys.executable, str(example)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert (done.returncode, done.stderr) == (0, "")
    printed = re.fullmatch(
        r"accuracy (0\.\d+) with 218 parameters left, 90% are gone\nReport: runs/federation/report.html\n", done.stdout
    )
    assert printed and float(printed[1]) > 0.93
    run = load_run(tmp_path / "runs" / "federation")
    assert [sum(row) for row in run.partition.counts] == [100, 150, 200] if run.partition else False
    assert (run.last.round, run.last.nonzero, f"{run.last.score:.3f}") == (20, 218, printed[1])
    assert "<html" in (run.path / "report.html").read_text()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration beside a module of the user's, in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(OWN)
    text = CONFIG.replace('"digits"', '"mine:data"')
    return write_config(
        tmp_path, text.replace('name = "2-fc"\ninputs = 64\nhidden = 8', 'name = "mine:network"\nwidth = 6')
    )


def test_a_configuration_names_a_network_and_data_by_module_and_function(own: Path, tmp_path: Path) -> None:
    outcome = call("run", own, "--out", "run")
    assert (outcome.code, outcome.err) == (0, "")
    run = load_run(tmp_path / "run")
    assert (run.model, run.dataset) == ("mine:network", "mine:data")
    assert run.layers[0].size == 18
    assert run.last.round == 3
    assert call("partition", own).code == 0


def test_such_a_run_can_be_resumed(own: Path, tmp_path: Path) -> None:
    assert call("run", own, "--out", "run").code == 0
    before = contents(tmp_path / "run")
    (tmp_path / "run" / "model.fsp").unlink()
    assert call("resume", "run").code == 0
    after = contents(tmp_path / "run")
    assert after["model.fsp"] == before["model.fsp"] and after["metrics.jsonl"] == before["metrics.jsonl"]
    assert len(records(tmp_path / "run")) == 4


def test_a_run_starts_where_another_ended_and_goes_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors", reason="the extra 'export' is not installed")
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "examples")])
    config = write_config(tmp_path, CONFIG)
    assert call("run", config, "--out", tmp_path / "first").code == 0
    assert call("export", tmp_path / "first", "--format", "safetensors").code == 0
    own = {"name": "further:network", "of": "2-fc", "start": tmp_path / "first" / "model.safetensors"}
    changes = [f"--set=model.{key}={value}" for key, value in own.items()]
    changes += ["--set=schedule.initial=0.9", "--set=schedule.final=0.95"]
    outcome = call("run", config, *changes, "--out", tmp_path / "second")
    assert (outcome.code, outcome.err) == (0, "")
    first, second = records(tmp_path / "first"), records(tmp_path / "second")
    assert second[0]["accuracy"] == first[-1]["accuracy"]
    assert second[1]["nonzero"] == first[-1]["nonzero"] == 69 and second[-1]["nonzero"] == 35  # of 682
    assert load_run(tmp_path / "second").model == "further:network"
