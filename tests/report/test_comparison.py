"""Methods are compared as one would by hand, in four files and a page that say the same."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from fedsparsify.errors import RunError
from fedsparsify.report.alike import same_start
from fedsparsify.report.archive import load_sweep
from fedsparsify.report.comparison import Comparison, compare, final
from fedsparsify.report.comparison_figures import all_comparison_figures
from fedsparsify.report.comparison_page import render_comparison, write_comparison
from fedsparsify.report.comparison_tables import all_tables, marks
from fedsparsify.report.tables_text import runs_csv, to_markdown
from tests.report.fake_sweeps import PageTables, add_run, add_runs

DENSE_FINALS = {1: 0.90, 2: 0.92, 3: 0.94}


def compared(sweep: Path, target: float | None = None) -> Comparison:
    return compare(load_sweep(sweep).runs, target)


def rows_of(markdown: str, title: str) -> dict[str, list[str]]:
    """The rows of a Markdown table by their first cell."""
    lines = markdown.partition(f"## {title}\n")[2].split("\n## ")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    return {name: rest for name, *rest in cells}


def dicts(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on two partitions, five methods and three seeds; the folder that it is in."""
    sweep = tmp_path_factory.mktemp("comparison") / "grid"
    for kind in ("iid", "classes"):
        settings = {"partition.kind": kind}
        name = f"{{}}_kind-{kind}_seed-{{}}".format
        for method, sparsity, finals in (
            ("fedavg", 0.0, DENSE_FINALS),
            ("fedsparsify-global", 0.9, {1: 0.89, 2: 0.90, 3: 0.94}),
            ("fedsparsify-local", 0.9, {1: 0.88, 2: 0.92, 3: 0.92}),
            ("snip", 0.9, {1: 0.50, 2: 0.51, 3: 0.55}),
            ("random", 0.9, {1: 0.30}),
            ("fedsparsify-global", 0.95, {1: 0.85, 2: 0.86, 3: 0.90}),
            ("snip", 0.95, {1: 0.40, 2: None, 3: 0.45}),
        ):
            for seed, score in finals.items():
                own = name(f"{method}-{sparsity}", seed)
                add_run(sweep, method, seed, [0.1, 0.905, score], sparsity=sparsity, settings=settings, name=own)
    write_comparison(sweep, sweep / "out" / "report.html")
    return sweep / "out"


def test_scores_by_hand(written: Path) -> None:
    table = rows_of((written / "table.md").read_text(), "Test accuracy in % after the last round: kind = iid")
    assert table["Method"] == ["dense", "90%", "95%"]
    # Squares over n - 1: 90, 92, 94: (4 + 0 + 4) / 2 = 2^2; 89, 90, 94: (4 + 1 + 9) / 2 = 2.65^2;
    # 88, 92, 92: (7.11 + 1.78 + 1.78) / 2 = 2.31^2.
    assert table["fedavg"] == ["92.00 ± 2.00", "–", "–"]
    assert table["fedsparsify-global"] == ["–", "91.00 ± 2.65 †", "87.00 ± 2.65"]
    assert table["fedsparsify-local"] == ["–", "90.67 ± 2.31 †", "–"]
    assert table["snip"] == ["–", "52.00 ± 2.65", "diverged (1 of 3)"]
    assert table["random"] == ["–", "30.00 (1 seed)", "–"]
    assert list(table)[1:] == ["fedavg", "fedsparsify-global", "fedsparsify-local", "random", "snip"]


def test_costs_by_hand(written: Path) -> None:
    table = rows_of((written / "table.md").read_text(), "What it costs: kind = iid")
    # Two rounds of 4 MB; dense: two rounds, two clients, two ways, 100 parameters, 4 bytes = 3.2 kB.
    # Seconds of seed s: 2 (1000 + s) = 2002, 2004, 2006. Target: 0.99 * 92% = 91.08%; 90.5% in round 1 is below.
    cost = ["3", "8 ± 0", "250000.0%", "2,004 ± 2"]
    assert table["fedavg"] == ["dense", *cost, "100 ± 0", "2 (never in 1 of 3)"]
    assert table["random"] == ["90%", "1", "8", "250000.0%", "2,002", "10", "never"]
    text = (written / "table.md").read_text()
    assert "The target is 91.08%, 99% of the accuracy with which dense fedavg ends on average." in text


def test_differences_by_hand(written: Path) -> None:
    text = (written / "table.md").read_text()
    against = rows_of(text, "Differences against dense fedavg: kind = iid")
    assert against["fedavg"] == ["the reference", "–", "–"]
    # -1, -2, 0: mean -1, deviation 1, t = -sqrt 3, p = 1 - sqrt(3/5) = 0.2254. Tests of the column with -2, 0, -2
    # (t = -2, p = 0.1835) and -40, -41, -39 (p = 0.0002): Holm's factors are 3, 2, 1.
    assert against["fedsparsify-global"][1] == "−1.00; not significant (p = 0.37, 3 seeds)"
    assert against["fedsparsify-local"][1] == "−1.33; not significant (p = 0.37, 3 seeds)"
    assert against["snip"][1:] == [r"−40.00; significant (p \< 0.001, 3 seeds)", "a run diverged: no statement"]
    assert against["random"][1] == "−60.00; one seed: no statement"
    best = rows_of(text, "Differences against the best of the column: kind = iid")
    assert best["fedavg"][0] == best["fedsparsify-global"][1] == best["fedsparsify-global"][2] == "the best"
    # Global is 39 points above SNIP on every seed, so that there is nothing to measure by.
    assert best["snip"][1] == "−39.00; the same difference on every seed: no statement"


def from_latex(text: str) -> tuple[str, str]:
    bold, dagger = r"\textbf{", r"$^{\dagger}$"
    mark = "bold" if text.startswith(bold) else "dagger" if text.endswith(dagger) else ""
    text = text.removesuffix(dagger)
    text = text.removeprefix(bold).removesuffix("}") if mark == "bold" else text
    for code, sign in ((r"\%", "%"), (r"$\pm$", "±"), ("$-$", "−"), (r"\textless{}", "<"), ("--", "–")):
        text = text.replace(code, sign)
    return text, mark


def from_markdown(text: str) -> tuple[str, str]:
    mark = "bold" if text.startswith("**") else "dagger" if text.endswith(" †") else ""
    return re.sub(r"\\(.)", r"\1", text.strip("*").removesuffix(" †")), mark


def test_page_markdown_and_latex_show_the_same_tables(written: Path) -> None:
    markdown = [
        [[from_markdown(cell) for cell in line[2:-2].split(" | ")] for line in part.splitlines() if line[:2] == "| "]
        for part in (written / "table.md").read_text().split("## ")[1:]
    ]
    latex = [
        [[from_latex(cell) for cell in line[:-3].split(" & ")] for line in part.splitlines() if line.endswith(r" \\")]
        for part in (written / "table.tex").read_text().split(r"\begin{table}")[1:]
    ]
    page = PageTables((written / "report.html").read_text()).tables
    assert len(markdown) == 10 and sum(map(len, markdown)) > 60
    assert latex == markdown
    # The page shows the means of the last ten rounds, second in the files, at the end.
    order = [0, 2, 3, 4, 1, 5, 7, 8, 9, 6]
    assert page == [markdown[index] for index in order]
    assert {mark for table in page for row in table for _, mark in row} == {"", "dagger"}


def test_the_csv_files_hold_what_the_tables_show_and_agree_with_each_other(written: Path) -> None:
    rows = dicts((written / "table.csv").read_text())
    runs = dicts((written / "runs.csv").read_text())
    markdown = (written / "table.md").read_text()
    assert (len(rows), len(runs)) == (14, 38)
    for row in rows:
        mine = [run for run in runs if all(run[key] == row[key] for key in ("problem", "method"))]
        scores = [run["final"] for run in mine if run["sparsity_asked"] == row["sparsity"]]
        assert row["seeds"] == str(len(scores))
        table = rows_of(markdown, f"Test accuracy in % after the last round: {row['problem']}")
        shown = table[row["method"]][{"": 0, "0.9": 1, "0.95": 2}[row["sparsity"]]]
        if "" in scores:
            assert (row["final_mean"], row["final_std"], shown) == ("", "", "diverged (1 of 3)")
            continue
        mean = sum(map(float, scores)) / len(scores)
        assert float(row["final_mean"]) == pytest.approx(mean)
        assert shown.startswith(f"{100 * mean:.2f}")
        assert (row["final_std"] == "") == (len(scores) == 1)
        if row["final_std"]:
            assert f"± {100 * float(row['final_std']):.2f}" in shown
    (local,) = [row for row in rows if row["method"] == "fedsparsify-local" and row["problem"] == "kind = iid"]
    assert local["reference_statement"] == "not significant (p = 0.37, 3 seeds)"
    assert float(local["reference_p"]) == pytest.approx(1 - 2 / math.sqrt(6))
    assert float(local["reference_p_holm"]) == pytest.approx(2 * (1 - 2 / math.sqrt(6)))
    assert (local["best_method"], local["best_seeds"]) == ("fedsparsify-global", "3")
    assert [run["rounds_to_target"] for run in runs if run["method"] == "fedavg"] == ["", "2", "2"] * 2
    assert "nan" not in (written / "table.csv").read_text() + (written / "runs.csv").read_text()


def test_the_figures_show_the_same_numbers(written: Path) -> None:
    (plots,) = [
        json.loads(text) for text in PageTables((written / "report.html").read_text()).scripts if text[0] == "{"
    ]
    by_method = {trace["name"]: trace for trace in plots["score-sparsity-0"]["data"]}
    assert by_method["fedsparsify-global"]["x"] == ["90%", "95%"]
    assert by_method["fedsparsify-global"]["y"] == pytest.approx([0.91, 0.87])
    assert by_method["fedsparsify-global"]["error_y"]["array"] == pytest.approx([0.0264575, 0.0264575])
    assert by_method["fedavg"]["y"] == pytest.approx([0.92, 0.92])  # a level line
    assert by_method["snip"]["x"] == ["90%"]  # a mean over diverged runs has no point
    layers = {trace["name"]: trace["x"] for trace in plots["layers-0-90"]["data"]}
    assert layers["fedsparsify-global"] == pytest.approx([0.1, 1.0])


CLEAR = {1: 0.90, 2: 0.91, 3: 0.92}
BELOW = {1: 0.80, 2: 0.82, 3: 0.81}  # 10, 9, 11 points below: p = 0.003


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"a": CLEAR, "b": BELOW}, {"a": "bold"}),
        ({"b": BELOW, "a": CLEAR}, {"a": "bold"}),
        ({"a": CLEAR}, {}),
        ({"a": CLEAR, "b": {1: 0.91, 2: 0.90, 3: 0.91}}, {"a": "dagger", "b": "dagger"}),
        # One of several cannot be told from the best: no bold, and none for the one that can.
        ({"a": CLEAR, "b": {1: 0.91, 2: 0.90, 3: 0.91}, "c": BELOW}, {"a": "dagger", "b": "dagger"}),
        ({"a": CLEAR, "b": dict(CLEAR)}, {"a": "dagger", "b": "dagger"}),
        ({"a": CLEAR, "b": {1: 0.7}, "c": BELOW}, {"a": "bold"}),  # the second best is c
        ({"a": CLEAR, "b": {1: 0.89}, "c": BELOW}, {}),  # the second best cannot be tested
        ({"a": {1: 0.95}, "b": CLEAR, "c": BELOW}, {}),  # the best has one seed
        ({"a": CLEAR, "b": {4: 0.8, 5: 0.81, 6: 0.79}}, {}),  # no common seed
        ({"a": CLEAR, "b": {1: 0.80, 2: 0.81, 3: 0.82}}, {}),  # no spread
        ({"a": CLEAR, "b": {1: None, 2: 0.99, 3: 0.99}}, {}),  # diverged
        ({"a": CLEAR, "b": BELOW, "c": {1: None, 2: 0.99, 3: 0.99}}, {"a": "bold"}),
        ({"a": {1: None}, "b": {1: None}}, {}),
    ],
)
@pytest.mark.parametrize("metric", ["accuracy", "mae"])
def test_marks(
    tmp_path: Path, scores: dict[str, dict[int, float | None]], expected: dict[str, str], metric: str
) -> None:
    for method, finals in scores.items():
        # An error of 1 - accuracy turns every order round.
        own = {seed: None if x is None else x if metric == "accuracy" else 1 - x for seed, x in finals.items()}
        add_runs(tmp_path, method, own, sparsity=0.9, metric=metric)
    (problem,) = compared(tmp_path).problems
    assert marks(problem, 0.9, final) == expected


def test_of_an_error_less_is_better(tmp_path: Path) -> None:
    add_runs(tmp_path, "fedavg", {1: 4.0, 2: 5.0, 3: 6.0}, metric="mae")
    add_runs(tmp_path, "snip", {1: 3.0, 2: 3.5, 3: 4.0}, metric="mae", sparsity=0.9)
    add_runs(tmp_path, "random", {1: 8.0, 2: 8.2, 3: 9.0}, metric="mae", sparsity=0.9)
    comparison = compared(tmp_path)
    (problem,) = comparison.problems
    assert problem.best(problem.cells, final) is problem.cell("snip", 0.9)
    text = to_markdown(all_tables(comparison)[0])
    # snip - random: -5, -4.7, -5: t = -49; snip - fedavg: -1, -1.5, -2.
    scores = rows_of(text, "Mean absolute error after the last round")
    assert scores == {
        "Method": ["dense", "90%"],
        "fedavg": ["5.000 ± 1.000", "–"],
        "random": ["–", "8.400 ± 0.529"],
        "snip": ["–", "**3.500 ± 0.500**"],
    }
    assert "lower is better" in text and "higher is better" not in text
    assert rows_of(text, "Differences against dense fedavg")["snip"][1].startswith("−1.500; ")
    # 101% of 5: fedavg comes below 5.05 with seeds 1 and 2 only.
    assert problem.target == pytest.approx(5.05)
    assert "The target is 5.050, 101% of the error with which dense fedavg ends on average." in text
    costs = rows_of(text, "What it costs")
    assert [costs[method][-1] for method in ("fedavg", "random", "snip")] == ["2 (never in 1 of 3)", "never", "2"]


@pytest.mark.parametrize(
    ("metric", "scores", "target", "rounds"),
    [
        ("accuracy", [0.1, 0.5, 0.8, 0.9], 0.8, 2),  # as good as the target is enough
        ("accuracy", [0.1, 0.5, 0.7999, 0.9], 0.8, 3),
        ("accuracy", [0.1, 0.9, 0.2, 0.9], 0.8, 1),  # the first time counts
        ("accuracy", [0.9, 0.1, 0.1], 0.8, 0),
        ("accuracy", [0.1, 0.5, 0.79], 0.8, None),
        ("accuracy", [0.1, None, 0.9], 0.8, 2),
        ("accuracy", [0.1, None, None], 0.0, 0),
        ("mae", [9.0, 5.0, 4.0, 3.0], 4.0, 2),
        ("mae", [9.0, 5.0, 4.1], 4.0, None),
        ("mae", [9.0, None, 3.9], 4.0, 2),
    ],
)
def test_rounds_to_a_target(
    tmp_path: Path, metric: str, scores: list[float | None], target: float, rounds: int | None
) -> None:
    add_run(tmp_path, "fedavg", 1, scores, metric=metric)
    comparison = compared(tmp_path, target)
    (problem,) = comparison.problems
    found = problem.rounds_to_target(load_sweep(tmp_path).runs[0])
    assert found == pytest.approx(math.nan if rounds is None else rounds, nan_ok=True)
    text = to_markdown(all_tables(comparison)[0])
    assert rows_of(text, "What it costs")["fedavg"][-1] == ("never" if rounds is None else str(rounds))
    assert f"The target is {f'{target:.2%}' if metric == 'accuracy' else f'{target:.3f}'}, as asked for." in text
    (row,) = dicts(runs_csv(comparison))
    assert (row["rounds_to_target"], row["target"]) == ("" if rounds is None else str(rounds), f"{target:g}")


@pytest.mark.parametrize(
    ("runs", "target", "rule"),
    [
        ([("fedprox", 0.0, 0.9), ("fedavg", 0.0, 0.8), ("snip", 0.9, 0.95)], 0.792, "dense fedavg"),
        ([("snip", 0.9, 0.95), ("fedprox", 0.0, 0.9)], 0.891, "dense fedprox"),
        ([("snip", 0.9, 0.5), ("random", 0.95, 0.6)], 0.594, "random"),
        ([("fedavg", 0.0, None), ("snip", 0.9, 0.5)], 0.495, "snip"),
    ],
)
def test_the_target_is_the_dense_references_or_the_bests(
    tmp_path: Path, runs: list[tuple[str, float, float | None]], target: float, rule: str
) -> None:
    for method, sparsity, score in runs:
        add_run(tmp_path, method, 1, [0.1, score], sparsity=sparsity)
    (problem,) = compared(tmp_path).problems
    assert problem.target == pytest.approx(target)
    assert problem.target_rule == f"99% of the accuracy with which {rule} ends on average"


def test_where_every_run_diverged_there_is_no_target_and_still_a_page(tmp_path: Path) -> None:
    add_run(tmp_path, "fedavg", 1, [0.1, None])
    add_run(tmp_path, "snip", 1, [None, None], sparsity=0.9)
    comparison = compared(tmp_path)
    text = to_markdown(all_tables(comparison)[0])
    assert "There is no target, as every method has diverged." in text and "nan" not in text
    assert [figure.id for figure in all_comparison_figures(comparison)[0].over_columns] == ["score-sparsity-0"]
    render_comparison(load_sweep(tmp_path), comparison, all_tables(comparison))


@pytest.mark.parametrize(
    ("key", "one", "other", "titles"),
    [
        ("partition.kind", "iid", "classes", ["kind = classes", "kind = iid"]),
        ("data.name", "digits", "cifar10", ["name = cifar10", "name = digits"]),
        ("model.name", "2-fc", "cnn", ["name = 2-fc", "name = cnn"]),
        ("federation.clients", 10, 100, ["clients = 10", "clients = 100"]),
        ("partition.alpha", None, 0.5, ["", "alpha = 0.5"]),
        ("data.dir", "here", "there", None),
        ("run.workers", 1, 2, None),
        ("train.lr", 0.1, 0.2, [""]),
    ],
)
def test_what_is_learned_sets_problems_apart_and_how_sets_methods_apart(
    tmp_path: Path, key: str, one: Any, other: Any, titles: list[str] | None
) -> None:
    for name, value in (("a", one), ("b", other)):
        add_run(tmp_path, "fedavg", 1, [0.1, 0.9], name=name, settings={key: value})
    if titles is None:  # it changes no result
        with pytest.raises(RunError, match=r"a and .*b have the same settings and seed, so they are one run: move one"):
            compared(tmp_path)
        return
    comparison = compared(tmp_path)
    assert [problem.title for problem in comparison.problems] == titles
    assert list(comparison.methods) == (["fedavg (lr = 0.1)", "fedavg (lr = 0.2)"] if key == "train.lr" else ["fedavg"])


@pytest.mark.parametrize("fact", ["dataset", "model"])
def test_records_alone_tell_other_data_and_models_apart(tmp_path: Path, fact: str) -> None:
    for name in ("a", "b"):
        facts: dict[str, Any] = {fact: name}
        (add_run(tmp_path, "fedavg", 1, [0.1, 0.9], name=name, **facts) / "config.toml").unlink()
    assert [problem.title for problem in compared(tmp_path).problems] == ["name = a", "name = b"]


ODD: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"initial": "other"}, "seed 2: other initial weights than most have: odd"),
    ({"partition": {"counts": [[29, 1], [1, 29]]}}, "seed 2: another partition than most have: odd"),
    ({"scores": [0.2, 0.5]}, "seed 2: another score in round 0 than most have: odd"),
    ({"scores": [0.2, 0.5], "records": {"sparsity": 0.9}, "sparsity": 0.9}, None),  # it is pruned before round 0
    ({"initial": None, "partition": None}, None),
]


@pytest.mark.parametrize(("facts", "finding"), ODD)
def test_the_page_says_which_runs_of_a_seed_did_not_start_alike(
    tmp_path: Path, facts: dict[str, Any], finding: str | None
) -> None:
    for seed in (1, 2):
        for method in ("fedavg", "fedprox"):
            add_run(tmp_path, method, seed, [0.1, 0.4])
    add_run(tmp_path, "snip", 2, **({"scores": [0.1, 0.5], "name": "odd"} | facts))
    comparison = compared(tmp_path)
    findings = same_start(comparison.problems)
    assert findings.alike == (finding is None)
    if finding:
        assert findings.sentences == (finding,)
    page = PageTables(render_comparison(load_sweep(tmp_path), comparison, all_tables(comparison))).words
    assert all(sentence in page for sentence in findings.sentences)
    assert ("did not start alike" in page) == (finding is not None)
