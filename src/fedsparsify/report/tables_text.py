"""Tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence

from fedsparsify.report.comparison import DENSE, Comparison, differences, final, last_ten
from fedsparsify.report.comparison_tables import Entry, TextTable
from fedsparsify.report.records import printable
from fedsparsify.report.significance import mean_and_deviation

__all__ = ["comparison_csv", "runs_csv", "to_latex", "to_markdown"]


def to_markdown(tables: Iterable[TextTable]) -> str:
    """Return tables as Markdown, each under a heading."""
    parts = []
    for table in tables:
        lines = [f"## {_in_markdown(_heading(table))}", "", f"| {' | '.join(map(_in_markdown, table.heads))} |"]
        lines.append(f"|---{('|--:' if table.numbers else '|---') * (len(table.heads) - 1)}|")
        for name, entries in table.rows:
            lines.append(f"| {' | '.join([_in_markdown(name), *map(_markdown_entry, entries)])} |")
        parts.append("\n".join([*lines, "", _in_markdown(table.caption), ""]))
    return "\n".join(parts)


def to_latex(tables: Iterable[TextTable]) -> str:
    r"""Return tables as LaTeX for the package booktabs; in text they need ``\usepackage{booktabs}`` only."""
    parts = ["% made by fedsparsify report; needs \\usepackage{booktabs}"]
    for table in tables:
        columns = "l" + ("r" if table.numbers else "l") * (len(table.heads) - 1)
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{_in_latex(f'{_heading(table)}. {table.caption}')}}}"]
        lines += [rf"\label{{tab:{table.id}}}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        lines.append(rf"{' & '.join(map(_in_latex, table.heads))} \\")
        lines.append(r"\midrule")
        for name, entries in table.rows:
            lines.append(rf"{' & '.join([_in_latex(name), *map(_latex_entry, entries)])} \\")
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]))
    return "\n\n".join(parts) + "\n"


def comparison_csv(comparison: Comparison) -> str:
    """Return one row a method, column and problem, unrounded; empty fields are what cannot be said."""
    heads = [
        "problem",
        "method",
        "sparsity",
        "seeds",
        "metric",
        "final_mean",
        "final_std",
        "last_ten_mean",
        "last_ten_std",
    ]
    heads += ["megabytes_mean", "megabytes_std", "seconds_train_mean", "seconds_train_std", "parameters_left_mean"]
    for what in ("reference", "best"):
        heads += [f"{what}_{field}" for field in ("method", "difference", "seeds", "p", "p_holm", "statement")]
    rows = []
    for problem in comparison.problems:
        for column in problem.columns:
            cells = problem.in_column(column)
            others = (problem.reference(), problem.best(cells, final))
            tests = [{} if other is None else differences(cells, other, final) for other in others]
            for cell in cells:
                row: list[object] = [problem.title, cell.method, "" if column == DENSE else column, len(cell.rows)]
                row.append(problem.metric)
                for measure in (final, last_ten, lambda r: r.megabytes, lambda r: r.seconds_train):
                    row += cell.spread(measure)
                row.append(mean_and_deviation(r.parameters_left for r in cell.rows.values())[0])
                for other, test in zip(others, tests, strict=True):
                    outcome = test.get(cell.method) if cell is not other else None
                    if other is None or outcome is None:
                        row += ["" if other is None else other.method, "", "", "", "", ""]
                    else:
                        row += [other.method, outcome.mean, outcome.seeds, outcome.p, outcome.adjusted, outcome.words]
                rows.append(row)
    return _csv(heads, rows)


def runs_csv(comparison: Comparison) -> str:
    """Return one row a run."""
    heads = ["run", "problem", "method", "sparsity_asked", "seed", "rounds", "metric", "final", "last_ten", "best"]
    heads += ["sparsity", "parameters_left", "parameters", "megabytes", "dense_megabytes", "seconds_train"]
    heads += ["seconds_wall", "failures", "rounds_to_target", "target"]
    rows: list[list[object]] = []
    for problem in comparison.problems:
        for cell in problem.cells:
            for seed, run in cell.runs.items():
                r = cell.rows[seed]
                row: list[object] = [printable(run.path.name), problem.title, cell.method]
                row += ["" if cell.column == DENSE else cell.column, seed, r.rounds_done, r.metric]
                row += [r.final, r.last_ten, r.best, r.sparsity, r.parameters_left, r.parameters]
                row += [r.megabytes, r.dense_megabytes, r.seconds_train, r.seconds_wall, r.failures]
                rows.append([*row, problem.rounds_to_target(run), problem.target])
    return _csv(heads, rows)


def _csv(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([_plain(value) for value in row] for row in rows)
    return out.getvalue()


def _plain(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.10g}"
    # A spreadsheet would take such a text for a formula.
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def _heading(table: TextTable) -> str:
    return f"{table.title}: {table.problem}" if table.problem else table.title


def _in_markdown(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\|*_<>`[]" else c for c in text)


def _markdown_entry(entry: Entry) -> str:
    text = _in_markdown(entry.text)
    return {"bold": f"**{text}**", "dagger": f"{text} †"}.get(entry.mark, text)


_LATEX = {
    **{c: f"\\{c}" for c in "#$%&_{}"},
    **{c: f"{{{c}}}" for c in "[]*"},  # at the start of a row they would be an option of the row before
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "†": r"$^{\dagger}$",
    "−": "$-$",
    "–": "--",
    "“": "``",
    "”": "''",
}


def _in_latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)


def _latex_entry(entry: Entry) -> str:
    text = _in_latex(entry.text)
    return {"bold": rf"\textbf{{{text}}}", "dagger": rf"{text}$^{{\dagger}}$"}.get(entry.mark, text)
