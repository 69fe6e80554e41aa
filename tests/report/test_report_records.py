"""A run directory is read whole, or refused with one sentence that names file and line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsparsify.errors import RunError
from fedsparsify.report import load_run
from fedsparsify.report.records import Failure, printable

MakeRun = Callable[..., Path]
RAGGED = json.dumps({"layers": [["w", [1]]] * 6, "partition": {"counts": [[1], [1, 2]]}}).encode()


def edit_line(run: Path, number: int, edit: Callable[[str], str]) -> None:
    lines = (run / "metrics.jsonl").read_text().split("\n")
    lines[number - 1] = edit(lines[number - 1])
    (run / "metrics.jsonl").write_text("\n".join(lines))


def set_keys(**values: object) -> Callable[[str], str]:
    return lambda line: json.dumps(json.loads(line) | values)


def test_a_complete_run_is_read(make_run: MakeRun) -> None:
    run = load_run(make_run(rounds=3, failures={2: [{"client": 4, "reason": "late"}]}))
    assert [record.round for record in run.rounds] == [0, 1, 2, 3]
    assert (run.method, run.seed, run.rounds_total, run.parameters) == ("fedsparsify-global", 1, 3, 118_282)
    assert run.metric == "accuracy"
    assert sum(layer.size for layer in run.layers) == 118_282
    assert run.rounds[1].participants == 10
    assert run.rounds[2].failures == (Failure(2, "4", "late"),)
    assert run.rounds[0].client_drift is None
    assert run.config["train"]["lr"] == 0.02


def test_a_run_of_another_program_needs_only_the_contract(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"parameters": 10}')
    (tmp_path / "metrics.jsonl").write_text('{"round": 5, "mae": 2.5, "sparsity": 0.5, "nonzero": 5}')
    run = load_run(tmp_path)
    assert (run.name, run.method, run.seed, run.metric) == (tmp_path.name, "unknown", None, "mae")
    assert (run.rounds_total, run.last.score, run.schedule, run.partition) == (5, 2.5, None, None)
    assert run.config_text == ""


def test_parameters_are_counted_where_not_recorded(make_run: MakeRun) -> None:
    assert load_run(make_run(rounds=1, parameters=None)).parameters == 118_282


def test_counts_without_classes_become_one_column(make_run: MakeRun) -> None:
    partition = load_run(make_run(rounds=1, partition={"kind": "sites", "counts": [12, 7]})).partition
    assert partition is not None
    assert (partition.class_names, partition.counts) == (("examples",), ((12,), (7,)))


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere: no such run directory"):
        load_run(tmp_path / "nowhere")


def test_not_a_run_directory(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not a run directory, it has no run\.json"):
        load_run(tmp_path)


@pytest.mark.parametrize("content", [None, ""])
def test_no_rounds_yet(make_run: MakeRun, content: str | None) -> None:
    run = make_run(rounds=1)
    (run / "metrics.jsonl").unlink()
    if content is not None:
        (run / "metrics.jsonl").write_text(content)
    with pytest.raises(RunError, match="no rounds yet"):
        load_run(run)


def test_a_score_that_is_not_finite_is_recorded_as_null_and_read_as_nan(make_run: MakeRun) -> None:
    run = make_run(rounds=3)
    edit_line(run, 3, set_keys(accuracy=None))
    assert math.isnan(load_run(run).rounds[2].score)


@pytest.mark.parametrize(
    ("line", "edit", "message"),
    [
        (4, lambda line: line[: len(line) // 2], r"line 4: not a complete JSON object"),
        (2, lambda line: "", r"line 2: not a complete JSON object"),
        (2, lambda line: "[" * 100_000, r"line 2: not a complete JSON object"),
        (2, lambda line: "[1, 2]", r"line 2: must be a JSON object, not \[1, 2\]"),
        (3, set_keys(round=1), r"line 3: round 1 follows round 1"),
        (3, set_keys(round=-1), r"line 3: round must be a whole number from 0 on, not -1"),
        (3, set_keys(round=True), r"line 3: round must be a whole number"),
        (3, set_keys(sparsity=None), r"line 3: sparsity is missing"),
        (3, lambda line: line.replace('"accuracy"', '"precision"'), r"line 3: accuracy is missing"),
        (3, set_keys(accuracy="high"), r"line 3: accuracy must be a number, not high"),
        (3, set_keys(sparsity=10**400), r"line 3: sparsity must be a number"),
        (3, set_keys(nonzero=1.5), r"line 3: nonzero must be a whole number"),
        (3, set_keys(participants=3), r"line 3: participants must be a list"),
        (3, set_keys(failures=["late"]), r"line 3: failures: must be a JSON object, not late"),
        (3, set_keys(groups=[1]), r"line 3: groups: must be a JSON object, not \[1\]"),
        (3, set_keys(groups={"Oulu": "good"}), r"line 3: groups: Oulu must be a number, not good"),
        (3, set_keys(layers_nonzero=[1, 2]), r"line 3: layers_nonzero has 2 counts for 6 layers"),
        (3, lambda line: line.replace('"accuracy"', '"mae"'), r"line 3: has mae where the lines before have accuracy"),
    ],
)
def test_a_damaged_line_is_named(make_run: MakeRun, line: int, edit: Callable[[str], str], message: str) -> None:
    run = make_run(rounds=3)
    edit_line(run, line, edit)
    with pytest.raises(RunError, match=rf"metrics\.jsonl: {message}"):
        load_run(run)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("run.json", b"{", r"run\.json: not a complete JSON object"),
        ("run.json", b"[]", r"run\.json: must be a JSON object"),
        ("run.json", b'{"layers": [["w", "big"]]}', r"run\.json: layers must be a list of \[name, shape\]"),
        ("run.json", RAGGED, r"counts are not of one length"),
        ("run.json", b"{}", r"layers_nonzero has 6 counts for 0 layers"),
        ("config.toml", b"lr = ", r"config\.toml: not valid TOML"),
        ("config.toml", b"\xff", r"config\.toml: cannot be read \(not UTF-8 text\)"),
    ],
)
def test_a_damaged_file_is_named(make_run: MakeRun, file: str, content: bytes, message: str) -> None:
    run = make_run(rounds=1)
    (run / file).write_bytes(content)
    with pytest.raises(RunError, match=message):
        load_run(run)


def test_a_line_separator_inside_a_reason_ends_no_line(make_run: MakeRun) -> None:
    run = make_run(rounds=1)
    failures = [{"client": 1, "reason": "a\u2028b"}]
    edit_line(run, 2, lambda line: json.dumps(json.loads(line) | {"failures": failures}, ensure_ascii=False))
    assert load_run(run).rounds[1].failures[0].reason == "a b"


def test_hostile_text_becomes_one_short_line_that_can_be_written() -> None:
    text = printable("first\nsecond\u202e\ud800\0" + "x" * 10_000_000)
    assert text.startswith("first second\ufffd\ufffd\ufffdxxx")
    assert len(text) == 300
    text.encode("utf-8")
