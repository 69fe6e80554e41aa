"""The headline's numbers are those one gets by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsparsify.report import headline, load_run
from fedsparsify.report.tables import config_differences, labels

MakeRun = Callable[..., Path]


def small_run(path: Path, scores: list[float], metric: str = "accuracy") -> Path:
    """Write a run of 100 parameters and two clients, with half the parameters gone from round 1 on."""
    path.mkdir()
    (path / "run.json").write_text(json.dumps({"name": path.name, "parameters": 100, "rounds": 20}))
    records = [
        {
            "round": t,
            metric: score,
            "sparsity": 0.5 if t else 0.0,
            "nonzero": 50 if t else 100,
            "participants": [0, 1] if t else [],
            "failures": [{"client": 1, "reason": "late"}] if t == 1 else [],
            "bytes_down": 500 if t else 0,
            "bytes_up": 300 if t else 0,
            "seconds_train": 2.0 if t else 0.0,
            "seconds_round": 1.5,
        }
        for t, score in enumerate(scores)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_headline_by_hand(tmp_path: Path) -> None:
    scores = [0.1, 0.9] + [0.5] * 9 + [0.6]
    (row,) = headline([load_run(small_run(tmp_path / "a", scores))])
    assert (row.name, row.rounds_done, row.rounds_total, row.metric) == ("a", 11, 20, "accuracy")
    assert row.final == 0.6
    assert row.last_ten == pytest.approx((9 * 0.5 + 0.6) / 10)
    assert row.best == 0.9
    assert (row.sparsity, row.parameters_left, row.parameters) == (0.5, 50, 100)
    # 11 rounds of 800 bytes; dense: 11 rounds x 2 clients x 2 ways x 100 parameters x 4 bytes.
    assert row.megabytes == pytest.approx(0.0088)
    assert row.dense_megabytes == pytest.approx(0.0176)
    assert row.dense_ratio == pytest.approx(0.5)
    assert (row.seconds_train, row.seconds_wall, row.failures) == (22.0, 18.0, 1)


def test_the_initial_model_counts_only_while_it_is_alone(tmp_path: Path) -> None:
    (first,) = headline([load_run(small_run(tmp_path / "a", [0.1]))])
    (second,) = headline([load_run(small_run(tmp_path / "b", [0.1, 0.3, 0.5]))])
    assert (first.rounds_done, first.last_ten, first.dense_ratio) == (0, 0.1, None)
    assert second.last_ten == pytest.approx(0.4)


def test_the_best_error_is_the_lowest_finite_one(tmp_path: Path) -> None:
    (row,) = headline([load_run(small_run(tmp_path / "a", [9.0, 4.0, 5.0, math.nan], metric="mae"))])
    assert (row.metric, row.best) == ("mae", 4.0)
    assert math.isnan(row.final)


def test_namesakes_are_told_apart(make_run: MakeRun) -> None:
    runs = [
        load_run(make_run("one", rounds=1, name="a", seed=1)),
        load_run(make_run("two", rounds=1, name="a", seed=2)),
        load_run(make_run("three", rounds=1, name="b")),
        load_run(make_run("four", rounds=1, name="b")),
    ]
    assert labels(runs) == ["a (seed 1)", "a (seed 2)", "b (three)", "b (four)"]
    assert labels([runs[0], runs[0]]) == ["a (run 1)", "a (run 2)"]


def test_only_settings_that_differ_are_listed(make_run: MakeRun) -> None:
    runs = [load_run(make_run("a", rounds=1)), load_run(make_run("b", rounds=1, seed=2))]
    (runs[1].path / "config.toml").write_text((runs[1].path / "config.toml").read_text() + "momentum = 0.9\n")
    runs[1] = load_run(runs[1].path)
    assert config_differences(runs) == [("run.seed", ["1", "2"]), ("train.momentum", ["–", "0.9"])]
