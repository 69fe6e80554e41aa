"""The example: a Flower app before and after, both run as they stand, with nodes in this process."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("flwr")  # the extra "flower"
pytest.importorskip("sklearn")  # the digits

from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from tests.commands import ROOT
from tests.federation.test_flower_strategy import Nodes

EXAMPLE = ROOT / "examples" / "flower_quickstart"
SETTINGS: dict[str, Any] = {"num-rounds": 3, "dataset": "digits", "local-epochs": 1, "learning-rate": 0.05}


@pytest.fixture
def _own_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "quickstart"]:
        del sys.modules[name]


def run(app: str) -> tuple[Nodes, dict[str, np.ndarray[Any, Any]]]:
    """Run an app in the current directory; return what was sent, and the model that it saved."""
    sys.path.insert(0, str(EXAMPLE / app))
    server, client = (importlib.import_module(f"quickstart.{end}_app").app for end in ("server", "client"))
    assert str(EXAMPLE / app) in str(sys.modules["quickstart"].__file__)

    def context(**node: int) -> Context:
        return Context(run_id=1, node_id=1, node_config=dict(node), state=RecordDict(), run_config=SETTINGS)

    def site(k: int) -> Any:
        def answer(message: Message) -> Message:
            reply: Message = client(message, context(**{"partition-id": k, "num-partitions": 3}))
            return reply

        return answer

    nodes = Nodes({10 + k: site(k) for k in range(3)})
    torch.manual_seed(1)
    server(nodes, context())
    with np.load("final_model.npz") as saved:
        return nodes, dict(saved)


@pytest.mark.usefixtures("_own_modules")
@pytest.mark.parametrize("app", ["before", "after"])
def test_the_app_trains_and_saves_a_model_of_the_same_form(app: str, capsys: pytest.CaptureFixture[str]) -> None:
    nodes, saved = run(app)
    assert {name: value.shape for name, value in saved.items()} == {
        "first.weight": (128, 64),
        "first.bias": (128,),
        "norm.weight": (128,),
        "norm.bias": (128,),
        "norm.running_mean": (128,),
        "norm.running_var": (128,),
        "norm.num_batches_tracked": (),
        "second.weight": (128, 128),
        "second.bias": (128,),
        "last.weight": (10, 128),
        "last.bias": (10,),
    }
    printed = capsys.readouterr().out
    assert float(printed.partition("accuracy ")[2][:6]) > (0.85 if app == "before" else 0.7)
    zeros = np.mean(saved["second.weight"] == 0)
    assert zeros > 0.85 if app == "after" else zeros == 0
    sizes = [sum(len(a.data) for r in m.content.array_records.values() for a in r.values()) for m in nodes.sent]
    assert sizes[-1] < 0.2 * sizes[0] if app == "after" else sizes[-1] >= 0.99 * sizes[0]


def test_the_two_apps_differ_in_a_few_lines_and_the_training_not_at_all() -> None:
    files = sorted(p.relative_to(EXAMPLE / "before") for p in (EXAMPLE / "before").rglob("*.[pt][yo]*") if p.is_file())
    files = [name for name in files if name.suffix in (".py", ".toml")]
    changed = {}
    for name in files:
        old, new = ((EXAMPLE / app / name).read_text().splitlines() for app in ("before", "after"))
        written = [line[2:] for line in difflib.ndiff(old, new) if line.startswith("+ ") and line.strip() != "+"]
        if written:
            changed[str(name)] = len(written)
    assert set(changed) == {"pyproject.toml", "quickstart/client_app.py", "quickstart/server_app.py"}
    assert changed["quickstart/client_app.py"] + changed["quickstart/server_app.py"] <= 7
