"""A comparison -> tables of texts, the same for the page, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedsparsify.report.comparison import (
    DENSE,
    Cell,
    Comparison,
    Measure,
    Problem,
    differences,
    final,
    last_ten,
)
from fedsparsify.report.records import Metric
from fedsparsify.report.significance import mean_and_deviation

__all__ = ["MARKS", "Entry", "TextTable", "all_tables", "column_name", "marks", "score_unit"]

MARKS = (
    "In each column, bold is the best method where it is significantly better than every other one that can be tested,"
    " the second best among them; † marks the best and all that it is not shown to be better than, where there are"
    " several. A method of which fewer than two seeds are common with the best is not tested and not marked."
)
"""What the marks of a score table mean."""


@dataclass(frozen=True)
class Entry:
    """One cell of a table: its text, and a mark that is ``""``, ``"bold"`` or ``"dagger"``."""

    text: str
    mark: str = ""


@dataclass(frozen=True)
class TextTable:
    """A table as it is shown.

    Attributes:
        id: unique in the comparison, of letters, digits and dashes.
        problem: the title of its problem.
        title: what it shows.
        caption: how to read it.
        heads: titles of the columns; the first is of the rows' names.
        rows: one name and its entries each.
        numbers: whether entries are numbers, to be set flush right.
    """

    id: str
    problem: str
    title: str
    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]
    numbers: bool = True


def all_tables(comparison: Comparison) -> list[list[TextTable]]:
    """Return the tables of each problem."""
    settled = "as a mean of the last ten rounds (as sparse as the last)"
    return [
        [
            _scores(problem, f"final-{index}", "after the last round", final, comparison.seeds),
            _scores(
                problem,
                f"last-ten-{index}",
                settled,
                last_ten,
                comparison.seeds,
            ),
            _costs(problem, f"costs-{index}"),
            *_differences(problem, index),
        ]
        for index, problem in enumerate(comparison.problems)
    ]


def column_name(column: float) -> str:
    """Return a column's title: ``dense`` or its sparsity in percent.

    >>> column_name(0.95), column_name(DENSE)
    ('95%', 'dense')
    """
    return "dense" if column == DENSE else f"{100 * column:.6g}%"


def score_unit(metric: Metric) -> str:
    """Return what a score is shown in."""
    return "Test accuracy in %" if metric == "accuracy" else "Mean absolute error"


def marks(problem: Problem, column: float, measure: Measure) -> dict[str, str]:
    """Return method -> mark in a column of a score table, as :data:`MARKS` says."""
    cells = problem.in_column(column)
    best = problem.best(cells, measure)
    if best is None or len(cells) < 2:
        return {}
    outcomes = differences(cells, best, measure)
    tested = {method: outcome for method, outcome in outcomes.items() if not outcome.reason}
    rivals = [method for method, outcome in tested.items() if not outcome.significant]
    if rivals:
        return dict.fromkeys([best.method, *rivals], "dagger")
    second = problem.best([cell for cell in cells if cell is not best], measure)
    return {best.method: "bold"} if second is not None and second.method in tested else {}


def _scores(problem: Problem, id_: str, when: str, measure: Measure, seeds: Sequence[int]) -> TextTable:
    marked = {column: marks(problem, column, measure) for column in problem.columns}
    rows = []
    for method in problem.methods:
        entries = []
        for column in problem.columns:
            cell = problem.cell(method, column)
            text = "–" if cell is None else _spread(cell, measure, problem.metric, len(seeds))
            entries.append(Entry(text, marked[column].get(method, "") if cell else ""))
        rows.append((method, tuple(entries)))
    better = "higher" if problem.metric == "accuracy" else "lower"
    count = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    return TextTable(
        id_,
        problem.title,
        f"{score_unit(problem.metric)} {when}",
        f"By the sparsity that was asked for; mean ± sample standard deviation over {count}, fewer where it says so;"
        f" {better} is better. {MARKS}",
        ("Method", *map(column_name, problem.columns)),
        tuple(rows),
    )


def _spread(cell: Cell, measure: Measure, metric: Metric, usual: int) -> str:
    mean, deviation = cell.spread(measure)
    seeds = "" if len(cell.rows) == usual else f" ({len(cell.rows)} seed{'s' if len(cell.rows) > 1 else ''})"
    if math.isnan(mean):
        lost = sum(not math.isfinite(value) for value in cell.values(measure).values())
        return f"diverged ({lost} of {len(cell.rows)})"
    factor, digits = (100, 2) if metric == "accuracy" else (1, 3)
    spread = "" if math.isnan(deviation) else f" ± {factor * deviation:.{digits}f}"
    return f"{factor * mean:.{digits}f}{spread}{seeds}"


def _costs(problem: Problem, id_: str) -> TextTable:
    rows = []
    for cell in problem.cells:
        to_target = [problem.rounds_to_target(run) for run in cell.runs.values()]
        reached = [rounds for rounds in to_target if not math.isnan(rounds)]
        missed = len(to_target) - len(reached)
        rounds = f"{sum(reached) / len(reached):.0f}" if reached else "never"
        if reached and missed:
            rounds += f" (never in {missed} of {len(to_target)})"
        dense = cell.mean(lambda row: math.nan if row.dense_ratio is None else row.dense_ratio)
        entries = (
            column_name(cell.column),
            str(len(cell.rows)),
            _number(cell, lambda row: row.megabytes, 0),
            "–" if math.isnan(dense) else f"{100 * dense:.1f}%",
            _number(cell, lambda row: row.seconds_train, 0),
            _number(cell, lambda row: row.parameters_left, 0),
            rounds,
        )
        rows.append((cell.method, tuple(map(Entry, entries))))
    if math.isnan(problem.target):
        target = "There is no target, as every method has diverged."
    else:
        score = f"{problem.target:.2%}" if problem.metric == "accuracy" else f"{problem.target:.3f}"
        target = f"The target is {score}, {problem.target_rule}."
    return TextTable(
        id_,
        problem.title,
        "What it costs",
        "Mean ± sample standard deviation over seeds. MB are all messages as encoded, down and up, over all rounds; “of"
        " dense” compares with float32 copies of all parameters for the same participants. Training seconds are summed"
        " over clients, and depend on the machine and what else it did. Rounds to target count to the first score as"
        " good as the target, however dense the network was then. " + target,
        (
            "Method",
            "Sparsity",
            "Seeds",
            "MB sent",
            "of dense",
            "Training seconds",
            "Parameters left",
            "Rounds to target",
        ),
        tuple(rows),
    )


def _number(cell: Cell, measure: Callable[..., float], digits: int) -> str:
    mean, deviation = mean_and_deviation(cell.values(measure).values())
    spread = "" if math.isnan(deviation) else f" ± {deviation:,.{digits}f}"
    return f"{mean:,.{digits}f}{spread}"


def _differences(problem: Problem, index: int) -> list[TextTable]:
    """Return the tables of tests: against dense FedAvg, and against the best of each column."""
    others: dict[str, dict[float, Cell | None]] = {
        "best": {column: problem.best(problem.in_column(column), final) for column in problem.columns}
    }
    reference = problem.reference()
    if reference is not None:
        others = {"reference": dict.fromkeys(problem.columns, reference), **others}
    tables = []
    for what, against in others.items():
        outcomes = {
            column: differences(problem.in_column(column), other, final)
            for column, other in against.items()
            if other is not None
        }
        rows = []
        for method in problem.methods:
            entries = []
            for column in problem.columns:
                cell, other = problem.cell(method, column), against[column]
                if cell is None or other is None:
                    text = "–"
                elif cell is other:
                    text = "the reference" if what == "reference" else "the best"
                else:
                    outcome = outcomes[column][method]
                    text = f"{_signed(outcome.mean, problem.metric)}{outcome.words}"
                entries.append(Entry(text))
            rows.append((method, tuple(entries)))
        title = "against the best of the column"
        if what == "reference" and reference:
            title = f"against dense {reference.method}"
        tables.append(
            TextTable(
                f"{what}-{index}",
                problem.title,
                f"Differences {title}",
                f"{'Percent points' if problem.metric == 'accuracy' else 'Differences of the error'} after the last"
                " round, mean over common seeds, and the paired t-test over these with Holm's correction within the"
                " column.",
                ("Method", *map(column_name, problem.columns)),
                tuple(rows),
                numbers=False,
            )
        )
    return tables


def _signed(value: float, metric: Metric) -> str:
    if math.isnan(value):
        return ""
    return (f"{100 * value:+.2f}" if metric == "accuracy" else f"{value:+.3f}").replace("-", "−") + "; "
