"""The page is one file, holds what the runs hold, and nothing a peer wrote can break out of its place."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import plotly.graph_objects as go
import pytest

from fedsparsify.errors import RunError
from fedsparsify.report import load_run, write_report
from fedsparsify.report.figures import all_figures
from fedsparsify.report.page import render
from fedsparsify.report.plots import run_keys
from fedsparsify.report.tables import labels

MakeRun = Callable[..., Path]
HOSTILE = "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"


class Page(HTMLParser):
    """What a browser would make of the page: its tags with attributes, and its words outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.words += data

    def count(self, tag: str) -> int:
        return sum(1 for name, _ in self.tags if name == tag)


def page_of(*runs: Path) -> Page:
    return Page(render([load_run(run) for run in runs]))


def test_one_run_shows_cards_headline_and_every_figure(make_run: MakeRun) -> None:
    page = page_of(make_run(method="fedsparsify-local", rounds=4))
    plots = [attributes["data-plot"] for _, attributes in page.tags if "data-plot" in attributes]
    assert plots == [
        "score-rounds",
        "score-bytes",
        "score-seconds",
        "loss",
        "sparsity",
        "layers",
        "layer-history",
        "drift-sparsity",
        "drift-rounds",
        "overlap-sparsity",
        "bytes",
        "bits",
        "time-sparsity",
        "partition0",
    ]
    assert "5,914" in page.words
    assert "of 118,282: 95.00% sparse" in page.words
    assert "10 clients hold 6,000 examples each, of 10 classes; 60,000 in all." in page.words
    assert "fedsparsify 0.1.0 · python 3.11.7" in page.words
    assert "fedsparsify run config.toml" in page.words
    assert "batch_size = 32" in page.words
    assert "not finished" not in page.words
    assert not any(attributes.get("id") == "failures" for _, attributes in page.tags)


def test_a_run_going_on_says_how_far_it_is(make_run: MakeRun) -> None:
    assert "round 57 of 200, not finished" in page_of(make_run(done=57)).words


def test_a_run_with_only_its_initial_model_is_shown(make_run: MakeRun) -> None:
    assert "round 0 of 200, not finished" in page_of(make_run(done=0)).words


def test_several_runs_list_the_settings_that_differ(make_run: MakeRun) -> None:
    page = page_of(make_run("a", rounds=2), make_run("b", rounds=2, name="fedavg-iid", method="fedavg", final=0))
    assert "Comparison of 2 runs" in page.words
    assert "schedule.final" in page.words
    assert "train.lr" not in page.words.split("batch_size")[0]
    assert page.count("details") == 2


def test_errors_in_units_of_the_target_read_so(make_run: MakeRun) -> None:
    page = page_of(make_run(metric="mae", rounds=2))
    assert "Mean absolute error over the rounds" in page.words
    assert "Accuracy" not in page.words


def test_accuracy_and_error_are_not_compared(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("a", rounds=1), make_run("b", rounds=1, name="brain", metric="mae")]
    with pytest.raises(RunError, match=r"fedsparsify-global-iid measures accuracy and brain measures mae"):
        write_report(runs, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run directory was given"):
        write_report([], tmp_path / "report.html")


@pytest.mark.parametrize("several", [False, True])
def test_hostile_text_stays_text(make_run: MakeRun, several: bool) -> None:
    hostile = make_run(
        rounds=2,
        name=HOSTILE,
        method=HOSTILE,
        model=HOSTILE,
        failures={1: [{"client": HOSTILE, "reason": HOSTILE}]},
        layers=[[HOSTILE + str(i), [1]] for i in range(6)],
        partition={"kind": HOSTILE, "class_names": [HOSTILE, "b"], "counts": [[1, 2]]},
        machine={HOSTILE: HOSTILE},
        version=HOSTILE,
        dataset=HOSTILE,
    )
    honest = page_of(make_run("honest", rounds=2))
    page = page_of(hostile, make_run("other", rounds=2)) if several else page_of(hostile)
    assert page.count("script") == honest.count("script") == 3
    assert page.count("img") == 0
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.words.count("owned") >= 10
    # plotly.js takes labels for pseudo-HTML, so in them the text must be escaped once more.
    names = [
        trace["name"] for plot in json.loads(page.scripts[0]).values() for trace in plot["data"] if "name" in trace
    ]
    assert names
    assert not any("<" in name for name in names)


def test_the_policy_admits_the_two_scripts_and_no_address(make_run: MakeRun) -> None:
    page = page_of(make_run(rounds=1))
    policy = next(a["content"] or "" for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data: blob:;")
    assert len(re.findall(r"'sha256-[\w+/]{43}='", policy)) == 2
    assert "http" not in policy


def test_not_a_number_leaves_a_gap(make_run: MakeRun) -> None:
    run = make_run(rounds=2)
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(re.sub(r'"loss": [\d.]+', '"loss": NaN', text, count=1))
    losses = json.loads(page_of(run).scripts[0])["loss"]["data"][0]["y"]
    assert [loss is None for loss in losses] == [True, False, False]


def test_many_failures_are_cut_and_counted(make_run: MakeRun) -> None:
    failures = {t: [{"client": k, "reason": "late"} for k in range(10)] for t in range(1, 31)}
    page = page_of(make_run(rounds=30, failures=failures))
    assert page.words.count("late") == 200
    assert "And 100 more" in page.words


def test_plotly_knows_every_property_of_every_figure(make_run: MakeRun) -> None:
    runs = [
        load_run(make_run("a", rounds=3, method="fedsparsify-local", frequency=2)),
        load_run(make_run("b", rounds=3, partition={"kind": "sites", "counts": [12, 7]}, name="b")),
    ]
    for chosen in (runs, runs[:1]):
        for figure in all_figures(chosen, run_keys(labels(chosen))):
            go.Figure(figure.data, figure.layout)


def test_forty_two_runs_look_different() -> None:
    keys = run_keys([str(i) for i in range(42)])
    assert len({(key.colour, key.dash) for key in keys}) == 42


def test_drift_is_read_at_the_sparsity_the_clients_trained_under(make_run: MakeRun) -> None:
    run = load_run(make_run(rounds=3))
    figures = {figure.id: figure for figure in all_figures([run], run_keys(["a"]))}
    before = [pytest.approx(record.sparsity, rel=1e-5) for record in run.rounds[:-1]]
    assert figures["drift-sparsity"].data[0]["x"] == before
    assert figures["drift-sparsity"].data[0]["customdata"] == [1, 2, 3]
    assert figures["time-sparsity"].data[0]["x"] == before


def test_the_target_is_stepped_where_pruning_is_not_in_every_round(make_run: MakeRun) -> None:
    for frequency, shape in ((1, "linear"), (5, "hv")):
        run = load_run(make_run(f"every{frequency}", rounds=10, frequency=frequency))
        figures = {figure.id: figure for figure in all_figures([run], run_keys(["a"]))}
        target = figures["sparsity"].data[0]
        assert (target["legendgroup"], target["line"]["shape"]) == ("target", shape)


def test_the_report_is_written_whole_or_not_at_all(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "report.html"
    assert write_report([make_run(rounds=1)], out) == out
    whole = out.read_bytes()
    assert whole.startswith(b"<!doctype html>")
    assert whole.endswith(b"</html>\n")

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"report\.html: the report cannot be written \(No space left on device\)"):
        write_report([make_run("again", rounds=2)], out)
    assert out.read_bytes() == whole
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_an_output_that_cannot_be_a_file_is_an_error(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(rounds=1)
    for out in (tmp_path, run / "run.json" / "report.html"):
        with pytest.raises(RunError, match="the report cannot be written"):
            write_report([run], out)
