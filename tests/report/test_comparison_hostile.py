"""Hostile names and records, and calls that cannot be meant: each gives a page that shows text, or one sentence."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsparsify.report import default_page, pack, write_comparison
from fedsparsify.report.archive import load_sweep
from fedsparsify.report.comparison import DENSE, Comparison, compare
from fedsparsify.report.comparison_page import render_comparison
from fedsparsify.report.comparison_tables import all_tables
from fedsparsify.report.tables_text import comparison_csv, runs_csv
from tests.commands import call, contents
from tests.report.fake_sweeps import PageTables, add_run

HOSTILE = "=1+1|*_`[x](y)\\%&#${}~^<script>alert('owned')</script>\"%s\n\x00\u202e"


def compared(sweep: Path) -> Comparison:
    return compare(load_sweep(sweep).runs)


def dicts(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    folder = tmp_path / "=sweep<img src=x onerror=owned>"
    for number, kind in enumerate((HOSTILE, "iid")):
        for seed in (1, 2):
            add_run(
                folder,
                HOSTILE,
                seed,
                [0.1, 0.9],
                name=f"=run{number}{seed}<b>|&",
                settings={"partition.kind": kind, "method.name": HOSTILE, f"train.{HOSTILE}": number},
                model=HOSTILE,
                dataset=HOSTILE,
                version=HOSTILE,
                machine={HOSTILE: HOSTILE},
                layers=[[HOSTILE, [10, 9]], ["b", [10]]],
                initial=HOSTILE + str(number + seed),
            )
    write_comparison(folder, tmp_path / "out" / "report.html")
    page = PageTables((tmp_path / "out" / "report.html").read_text())
    assert [tag for tag, _ in page.tags].count("script") == 3  # data, plotly.js and the page's own
    assert not {"img", "b", "x"} & {tag for tag, _ in page.tags}
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert page.words.count("owned") >= 20
    (plots,) = [json.loads(text) for text in page.scripts if text[0] == "{"]
    names = [trace["name"] for plot in plots.values() for trace in plot["data"]]
    assert names and not any("<" in name for name in names)  # plotly.js takes labels for pseudo-HTML

    markdown = (tmp_path / "out" / "table.md").read_text()
    assert not re.search(r"(?<!\\)[<>`*\[\]]", markdown.replace("\\\\", ""))
    for table in markdown.split("## ")[1:]:
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len(lines) == 3  # heads, rule, one method
        assert len({len(re.split(r"(?<!\\)\|", line.replace("\\\\", ""))) for line in lines}) == 1

    latex = (tmp_path / "out" / "table.tex").read_text()
    assert r"=1+1|{*}\_`{[}x{]}(y)\textbackslash{}\%\&\#\$\{\}\textasciitilde{}\textasciicircum{}" in latex
    bodies = re.findall(r"\\midrule\n(.*?)\\bottomrule", latex, re.DOTALL)
    assert all(row.endswith(r" \\") for body in bodies for row in body.splitlines())
    assert not re.search(r"(?<!\\)[#~^]", re.sub(r"\$\^\{\\dagger\}\$", "", latex))

    for name in ("table.csv", "runs.csv"):
        fields = [field for row in csv.reader(io.StringIO((tmp_path / "out" / name).read_text())) for field in row]
        assert sum("owned" in field for field in fields) >= 2
        assert not any(field[:1] in "=+-@\t\r" for field in fields if field and not _is_number(field))
    assert "'=run" in (tmp_path / "out" / "runs.csv").read_text()


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text) is not None


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_a_spreadsheet_takes_no_name_for_a_formula(tmp_path: Path, start: str) -> None:
    add_run(tmp_path, f" {start}cmd", 1, [0.1, 0.9], name="a")
    add_run(tmp_path, "fedavg", 1, [0.1, 0.95], name="b")
    for text in (comparison_csv(compared(tmp_path)), runs_csv(compared(tmp_path))):
        assert sorted(row["method"] for row in dicts(text)) == [f"'{start}cmd", "fedavg"]
    (row,) = [row for row in dicts(comparison_csv(compared(tmp_path))) if row["method"] != "fedavg"]
    assert row["reference_difference"] == "-0.05"  # a number is no text


def test_a_name_that_is_no_utf_8_is_shown_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "sweep\udcff"
    add_run(folder, "fedavg", 1, [0.1, 0.9], name="fedavg").rename(folder / "run\udcff")
    report = write_comparison(folder, tmp_path / "out" / "report.html")
    assert "<h1>sweep\ufffd</h1>" in report.page.read_text()
    assert dicts((tmp_path / "out" / "runs.csv").read_text())[0]["run"] == "run\ufffd"


@pytest.mark.parametrize(
    ("scheduled", "asked", "column"),
    [
        (0.9, 0.9, 0.9),
        (0.9, 0.85, 0.85),
        (0.9, None, 0.9),
        (0.9, math.nan, 0.9),
        (0.9, 10**400, 0.9),
        (0.9, True, 0.9),
        (0.9, "high", 0.9),
        (0.0, 0.95, DENSE),
    ],
)
def test_the_column_is_the_sparsity_that_was_asked_for(
    tmp_path: Path, scheduled: float, asked: Any, column: float
) -> None:
    add_run(tmp_path, "snip", 1, [0.1, 0.9], sparsity=scheduled, settings={"schedule.final": asked})
    assert compared(tmp_path).problems[0].columns == [column]


@pytest.mark.parametrize(
    ("facts", "records"),
    [
        ({"layers": [["w", [100]]]}, {"layers_nonzero": [10]}),  # other layers than the same method has with seed 1
        ({"layers": []}, {"layers_nonzero": []}),
        ({"layers": [["w", [0]], ["b", [10]]]}, {}),
        ({"partition": None, "machine": None, "initial": None}, {}),
        ({"parameters": 2**63}, {"bytes_up": 2**63, "bytes_down": 2**63}),
        ({}, {"seconds_train": 1e308, "accuracy": 1e308, "loss": 1e308}),
        ({}, {"seconds_train": math.inf, "accuracy": -math.inf}),
        ({}, {"seconds_train": -math.inf, "accuracy": math.inf}),
        ({}, {"sparsity": math.nan, "nonzero": 0}),
        ({"schedule": [math.nan]}, {"sparsity": math.inf}),
        ({}, {"participants": []}),
    ],
)
def test_a_strange_record_gives_a_page_all_the_same(
    tmp_path: Path, facts: dict[str, Any], records: dict[str, Any]
) -> None:
    add_run(tmp_path, "snip", 1, [0.1, 0.2, 0.9], sparsity=0.9, records={"seconds_train": 7.0})
    add_run(tmp_path, "snip", 2, [0.1, 0.3, 0.8], sparsity=0.9, records=records, **facts)
    add_run(tmp_path, "snip", 3, [0.1, 0.3, 0.8], sparsity=0.9, records={"seconds_train": math.inf})
    comparison = compared(tmp_path)
    page = render_comparison(load_sweep(tmp_path), comparison, all_tables(comparison))
    assert page.rstrip().endswith("</html>") and len(PageTables(page).tables) == 4
    assert len(dicts(runs_csv(comparison))) == 3


def edit_facts(**facts: Any) -> Callable[[Path], None]:
    def edit(sweep: Path) -> None:
        path = sweep / "b" / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | facts))

    return edit


def another_metric(sweep: Path) -> None:
    path = sweep / "b" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"accuracy"', '"mae"'))


def nothing(sweep: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("arguments", "prepare", "message"),
    [
        (["grid", "grid/a"], nothing, "grid is a sweep: report on it alone, or name some of the runs in it"),
        (["grid/a", "grid"], nothing, "grid is a sweep: report on it alone, or name some of the runs in it"),
        (["grid/a", "x.tar.xz"], nothing, "x.tar.xz is a sweep: report on it alone"),
        (["grid/a", "--target", "0.9"], nothing, "--target is for sweeps: name a sweep's directory, or leave it out"),
        (["grid/a", "grid/b", "--target", "0.9"], nothing, "--target is for sweeps"),
        (["grid", "--target", "90"], nothing, "--target = 90 must be a fraction, such as 0.9"),
        (["grid", "--target", "-0.1"], nothing, "--target = -0.1 must be a fraction, such as 0.9"),
        (["grid", "--target", "nan"], nothing, "--target = nan must be a fraction, such as 0.9"),
        (["empty"], nothing, "empty holds no finished run yet: go on with fedsparsify sweep, then report"),
        (["nowhere"], nothing, "nowhere: no such run directory"),
        (["none.tar.xz"], nothing, "none.tar.xz cannot be read (No such file or directory)"),
        (["grid"], another_metric, "grid/a measures accuracy and grid/b measures mae, which have no common axis"),
        (["grid"], edit_facts(seed=None), "grid/b/run.json: seed is missing; runs are paired by it"),
        (["grid"], edit_facts(method="fedavg"), "grid/a and grid/b have the same settings and seed"),
        (["grid", "--out", "grid"], nothing, "grid: the report cannot be written (Is a directory)"),
        (["grid", "--out", "new/table.md"], nothing, "new/table.md: a table is written there; choose another --out"),
        (["grid", "--out", "grid/sweep.toml/page.html"], nothing, "the report cannot be written"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_one_sentence_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], prepare: Callable[[Path], None], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    add_run(Path("grid"), "fedavg", 1, [0.1, 0.9], name="a")
    settings = {"method.name": "fedavg"}
    add_run(Path("grid"), "fedprox", 1, [0.1, 0.9], name="b", settings=settings)
    Path("empty").mkdir()
    Path("empty/sweep.toml").touch()
    prepare(Path("grid"))
    before = contents(tmp_path)
    outcome = call("report", *arguments)
    assert contents(tmp_path) == before
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: {message}") or f"{message} (" in outcome.err
    assert outcome.err.count("\n") == 1


def test_the_command_shows_the_first_table_and_says_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    add_run(Path("grid"), "fedavg", 1, [0.1, 0.9], name="a")
    add_run(Path("grid"), "snip", 1, [0.1, 0.8], sparsity=0.9, name="b")
    add_run(Path("grid"), "snip", 2, [0.1, 0.8], sparsity=0.9, name="c", rounds=5)
    files = ("table.md", "table.tex", "table.csv", "runs.csv")
    outcome = call("report", "grid", "--target", "0.8")
    assert (outcome.code, outcome.err) == (0, "")
    words = outcome.out.split()
    assert words[words.index("snip") :][:3] == ["snip", "–", "80.00"]
    assert "1 run is not finished and left out." in outcome.out
    assert outcome.out.endswith(f"Report: grid/report.html\nTables: {', '.join(f'grid/{file}' for file in files)}\n")
    assert sorted(path.name for path in Path("grid").iterdir() if path.is_file()) == sorted(
        ["report.html", "sweep.toml", *files]
    )
    assert "1 run is not finished and left out: c" in Path("grid/report.html").read_text()
    pack(Path("grid"), Path("packed.tar.xz"))
    assert default_page(Path("packed.tar.xz")) == Path("packed/report.html")
    os.rename("packed.tar.xz", ".tar.xz")
    assert default_page(Path(".tar.xz")) == Path("sweep/report.html")
