"""What docs/methods.md and docs/add-a-method.md say of methods is so."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

from fedsparsify.algorithms import METHODS, Method
from fedsparsify.algorithms.registry import build
from fedsparsify.purge import exact_mask
from fedsparsify.state import ClientUpdate, Floats, Mask, ModelState, ServerState
from tests.commands import call, write_config

DOCS = Path(__file__).parents[2] / "docs"
GIVEN = {"schedule", "purge", "select", "merge", "layout", "sparsity", "rounds", "seed"}


def rows(heading: str) -> list[list[str]]:
    part = (DOCS / "methods.md").read_text().split(heading, 1)[1].split("\n## ", 1)[0]
    lines = [line for line in part.splitlines() if line.startswith("| `")]
    return [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_method_has_a_row_with_its_file_and_the_paper_in_its_head() -> None:
    table = rows("# Methods")
    assert {row[0].strip("`") for row in table} == set(METHODS)
    for name, file, paper, *_ in table:
        module = inspect.getmodule(METHODS[name.strip("`")])
        assert module is not None and module.__file__ is not None and module.__doc__ is not None
        assert Path(module.__file__).name == file.strip("`")
        (number,) = re.findall(r"arXiv \d{4}\.\d{5}", paper)
        assert number in module.__doc__


def test_every_option_has_a_row_with_its_default() -> None:
    written = {(m.strip("`"), o.strip("`")): d.strip("`") for m, o, d, _ in rows("## Options")}
    there = {
        (name, p.name): f'"{p.default}"' if isinstance(p.default, str) else str(p.default)
        for name, function in METHODS.items()
        for p in inspect.signature(function).parameters.values()
        if p.name not in GIVEN
    }
    assert written == there


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    code = re.findall(r"```python\n(.*?)```", (DOCS / "add-a-method.md").read_text(), re.DOTALL)
    (tmp_path / "agreement.py").write_text(code[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_is_short_and_runs_from_the_command_line(example: Path) -> None:
    lines = [line for line in (example / "agreement.py").read_text().splitlines() if line.strip()]
    assert len(lines) < 60
    write_config(example)
    options = ["--set", "method.name=agreement:agreement", "--set", "method.strength=0.5"]
    result = call("run", "tiny.toml", "--out", "out", *options)
    assert result.code == 0, result.err
    wrong = call("run", "tiny.toml", "--out", "other", *options[:2], "--set", "method.x=1")
    assert wrong.code == 2
    assert "method.x is no option of agreement:agreement; it has strength" in wrong.err


def test_the_example_prunes_what_clients_disagree_on(example: Path) -> None:
    def select(scores: Floats, sparsity: float, mask: Mask) -> Mask:
        return exact_mask(scores, 1, mask)

    method = build("agreement:agreement", {"schedule": lambda t: 0.5, "select": select}, {})
    assert isinstance(method, Method)
    mask = np.ones(2, np.bool_)
    start = ServerState(0, ModelState(np.array([5, 1], np.float32), mask, np.zeros(0, np.float32)))
    moved = [np.array(w, np.float32) for w in ([6, 2], [4, 2])]  # the first is pulled both ways
    updates = [ClientUpdate(k, 1, ModelState.of_values(w, mask), 1) for k, w in enumerate(moved)]
    assert method.server_update(start, updates, 1).model.w.tolist() == [0.0, 2.0]
