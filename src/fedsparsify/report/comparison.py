"""Runs -> methods side by side: which runs answer the same question, and which of them are repetitions.

A *problem* is what is learned by whom: data, network, partition, federation, rounds. Within one, a *method* is a
method's name with the settings that vary among its runs, a *column* is the sparsity that a run is to end with, and the
seeds are the repetitions. A seed fixes the initial weights and the partition, the same for all methods, so that
differences between two methods are taken seed by seed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedsparsify.errors import RunError
from fedsparsify.report.records import Metric, Run, printable
from fedsparsify.report.significance import Difference, compare_pairs, mean_and_deviation
from fedsparsify.report.tables import HeadlineRow, headline

__all__ = [
    "DENSE",
    "Cell",
    "Comparison",
    "Measure",
    "Problem",
    "compare",
    "differences",
    "final",
    "last_ten",
]

DENSE = -1.0
"""The column of methods that do not prune; others are named by their sparsity."""

PROBLEM_TABLES = ("data", "model", "partition", "federation", "run")
"""Tables of a configuration that say what is learned; the others say how."""

NO_RESULT = {"run.name", "run.seed", "run.workers", "run.tensorboard", "data.dir", "wire.link_memory"}
"""Keys that change no result, and the seed, over which runs are repeated."""

Measure = Callable[[HeadlineRow], float]


@dataclass(frozen=True)
class Cell:
    """The runs of one method in one column of one problem.

    Attributes:
        method: its label.
        column: the sparsity asked for, or :data:`DENSE`.
        runs: seed -> run.
        rows: seed -> the run's figures.
    """

    method: str
    column: float
    runs: Mapping[int, Run]
    rows: Mapping[int, HeadlineRow]

    def values(self, measure: Measure) -> dict[int, float]:
        """Return seed -> figure."""
        return {seed: measure(row) for seed, row in self.rows.items()}

    def spread(self, measure: Measure) -> tuple[float, float]:
        """Return mean and sample deviation over seeds; NaN where a run has diverged, or for a deviation of one."""
        return mean_and_deviation(self.values(measure).values())

    def mean(self, measure: Measure) -> float:
        """Return the mean over seeds; NaN where a run has diverged."""
        return self.spread(measure)[0]


@dataclass(frozen=True)
class Problem:
    """What is learned by whom.

    Attributes:
        title: what sets it apart from the other problems, such as ``kind = iid``; empty where there is one only.
        cells: of every method and column that has runs, in the order of :attr:`methods` and :attr:`columns`.
        target: the score whose first round is looked for.
        target_rule: how the target was chosen, in words.
    """

    title: str
    metric: Metric
    cells: tuple[Cell, ...]
    target: float = math.nan
    target_rule: str = ""

    @property
    def methods(self) -> list[str]:
        """Labels of all methods."""
        return list(dict.fromkeys(cell.method for cell in self.cells))

    @property
    def columns(self) -> list[float]:
        """The dense column, where there is one, and sparsities in rising order."""
        return sorted({cell.column for cell in self.cells})

    def cell(self, method: str, column: float) -> Cell | None:
        """Return the runs of a method in a column, or None."""
        return next((cell for cell in self.cells if (cell.method, cell.column) == (method, column)), None)

    def reference(self) -> Cell | None:
        """Return dense FedAvg, else the first dense method, else None."""
        dense = [cell for cell in self.cells if cell.column == DENSE]
        return next((cell for cell in dense if cell.method == "fedavg"), dense[0] if dense else None)

    def in_column(self, column: float) -> list[Cell]:
        """Return the cells of a column."""
        return [cell for cell in self.cells if cell.column == column]

    def better(self, one: float, other: float) -> bool:
        """Whether a score is better than another; NaN is never, and never beaten."""
        return one > other if self.metric == "accuracy" else one < other

    def best(self, cells: Iterable[Cell], measure: Measure) -> Cell | None:
        """Return the cell of the best mean over the seeds that two of them share, None where all have diverged."""
        best = None
        for cell in cells:
            if math.isnan(cell.mean(measure)):
                continue
            if best is None:
                best = cell
                continue
            shared = (cell.rows.keys() & best.rows.keys()) or (cell.rows.keys() | best.rows.keys())
            means = [
                mean_and_deviation(value for seed, value in one.values(measure).items() if seed in shared)[0]
                for one in (cell, best)
            ]
            if self.better(*means):
                best = cell
        return best

    def rounds_to_target(self, run: Run) -> float:
        """Return the first round whose score is at least as good as the target; NaN if there is none."""
        reached = (r.round for r in run.rounds if r.score == self.target or self.better(r.score, self.target))
        return float(next(reached, math.nan))


@dataclass(frozen=True)
class Comparison:
    """A sweep, ready to be shown.

    Attributes:
        problems: at least one.
        methods: labels of all methods over all problems.
        seeds: all seeds, in rising order.
    """

    problems: tuple[Problem, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def metric(self) -> Metric:
        """What all runs measure."""
        return self.problems[0].metric


def compare(runs: Sequence[Run], target: float | None = None) -> Comparison:
    """Sort runs into problems, methods, columns and seeds.

    Args:
        runs: finished runs that measure the same; at least one.
        target: the score whose first round is looked for (accuracy as a fraction, or mean absolute error); by default
            99% of the accuracy with which dense FedAvg ends on average (101% of its error), or the best method's.

    Raises:
        RunError: runs measure different things, one lacks a seed, two are the same run twice, or there can be no such
            target.
    """
    for run in runs:
        if run.metric != runs[0].metric:
            raise RunError(
                f"{runs[0].path} measures {runs[0].metric} and {run.path} measures {run.metric}, which have no common"
                " axis; report them separately"
            )
        if run.seed is None:
            raise RunError(f"{run.path / 'run.json'}: seed is missing; runs are paired by it")
    if target is not None and not 0 <= target <= (1 if runs[0].metric == "accuracy" else math.inf):
        what = "a fraction, such as 0.9" if runs[0].metric == "accuracy" else "an error from 0 on"
        raise RunError(f"--target = {target:g} must be {what}: these runs measure {runs[0].metric}")
    flat = {run.path: {k: v for k, v in _settings(run).items() if k not in NO_RESULT} for run in runs}
    titles = _distinctions(runs, flat, lambda run: "", lambda key: key.split(".")[0] in PROBLEM_TABLES)
    options = _distinctions(
        runs,
        flat,
        lambda run: run.method,
        lambda key: key.split(".")[0] not in PROBLEM_TABLES and key not in ("method.name", "schedule.final"),
    )
    found: dict[str, dict[tuple[str, float], dict[int, Run]]] = {}
    rows = {run.path: replace(row, last_ten=_settled(run)) for run, row in zip(runs, headline(runs), strict=True)}
    for run in runs:
        method = f"{run.method} ({options[run.path]})" if options[run.path] else run.method
        seeds = found.setdefault(titles[run.path], {}).setdefault((method, _column(run, flat[run.path])), {})
        assert run.seed is not None
        if run.seed in seeds:
            raise RunError(
                f"{seeds[run.seed].path} and {run.path} have the same settings and seed, so they are one run: move one"
                " of them away"
            )
        seeds[run.seed] = run
    problems = []
    for title, cells in sorted(found.items()):
        order = sorted(cells, key=lambda place: (_rank(place[0], cells), place[0], place[1]))
        made = tuple(
            Cell(*place, dict(sorted(cells[place].items())), {s: rows[run.path] for s, run in cells[place].items()})
            for place in order
        )
        problems.append(_with_target(Problem(title, runs[0].metric, made), target))
    methods = dict.fromkeys(method for problem in problems for method in problem.methods)
    seeds_found = sorted({run.seed for run in runs if run.seed is not None})
    return Comparison(tuple(problems), tuple(methods), tuple(seeds_found))


def differences(cells: Sequence[Cell], other: Cell, measure: Measure) -> dict[str, Difference]:
    """Test cells of one column against another cell, which may be of another column, see :func:`compare_pairs`."""
    name = "other"  # no method's label, which may be that of one of the cells
    values = {f"cell {cell.method}": cell.values(measure) for cell in cells if cell is not other}
    outcomes = compare_pairs({**values, name: other.values(measure)}, name)
    return {method.removeprefix("cell "): outcome for method, outcome in outcomes.items()}


def final(row: HeadlineRow) -> float:
    """The score after the last round."""
    return row.final


def last_ten(row: HeadlineRow) -> float:
    """The mean score of those of the last ten rounds in which the network was as sparse as at the end."""
    return row.last_ten


def _settled(run: Run) -> float:
    """Return the mean score of the last ten rounds, but for those of a network with a tenth more parameters."""
    scores = [r.score for r in run.rounds[1:][-10:] or run.rounds if r.nonzero <= 1.1 * run.last.nonzero]
    return sum(scores) / len(scores)


def _column(run: Run, flat: Mapping[str, Any]) -> float:
    if run.schedule is None and run.last.sparsity < 0.001:
        return DENSE
    final = flat.get("schedule.final")
    if isinstance(final, int | float) and not isinstance(final, bool) and 0 <= final <= 1:
        return float(final)
    return run.schedule[-1] if run.schedule else round(run.last.sparsity, 3)


def _rank(method: str, cells: Iterable[tuple[str, float]]) -> int:
    """Dense methods first, FedAvg before all, then the paper's own, then the others."""
    if method == "fedavg":
        return 0
    if (method, DENSE) in cells:
        return 1
    return 2 if method.startswith("fedsparsify") else 3


def _distinctions(
    runs: Sequence[Run],
    flat: Mapping[Any, Mapping[str, Any]],
    group: Callable[[Run], str],
    belongs: Callable[[str], bool],
) -> dict[Any, str]:
    """Return run -> ``key = value`` of the keys that vary within its group; the short key where it is unique."""
    texts = {}
    for name in {group(run) for run in runs}:
        members = [run for run in runs if group(run) == name]
        keys = dict.fromkeys(key for run in members for key in flat[run.path] if belongs(key))
        varying = [key for key in keys if len({_shown(flat[run.path].get(key)) for run in members}) > 1]
        short = {key: key.split(".")[-1] for key in varying}
        for run in members:
            parts = [
                f"{short[key] if list(short.values()).count(short[key]) == 1 else key} = {_shown(flat[run.path][key])}"
                for key in varying
                if key in flat[run.path]
            ]
            texts[run.path] = ", ".join(parts)
    return texts


def _shown(value: Any) -> str:
    return printable(value if isinstance(value, str) else json.dumps(value, default=str), 60)


def _settings(run: Run) -> dict[str, Any]:
    """Return a run's settings; its record says what data and network it was of where they do not."""
    return {"data.name": run.dataset, "model.name": run.model, **_flatten(run.config)}


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{printable(key, 60)}.")
        else:
            flat[f"{prefix}{printable(key, 60)}"] = value
    return flat


def _with_target(problem: Problem, target: float | None) -> Problem:
    if target is not None:
        return Problem(problem.title, problem.metric, problem.cells, target, "as asked for")
    reference = problem.reference()
    if reference is None or math.isnan(reference.mean(final)):
        reference = problem.best(problem.cells, final)
    if reference is None:
        return problem
    share = 0.99 if problem.metric == "accuracy" else 1.01
    what = "accuracy" if problem.metric == "accuracy" else "error"
    label = f"{'dense ' if reference.column == DENSE else ''}{reference.method}"
    rule = f"{share:.0%} of the {what} with which {label} ends on average"
    return Problem(problem.title, problem.metric, problem.cells, share * reference.mean(final), rule)
