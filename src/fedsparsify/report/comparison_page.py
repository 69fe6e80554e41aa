"""A sweep -> one page that compares its methods, and the same tables as text files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsparsify.errors import RunError
from fedsparsify.files import replace_file
from fedsparsify.report.alike import same_start
from fedsparsify.report.archive import PACKED, Sweep, load_sweep
from fedsparsify.report.comparison import Comparison, compare
from fedsparsify.report.comparison_figures import all_comparison_figures
from fedsparsify.report.comparison_tables import TextTable, all_tables
from fedsparsify.report.html import asset, new_environment, page_scripts, policy_hash
from fedsparsify.report.significance import ALPHA
from fedsparsify.report.tables_text import comparison_csv, runs_csv, to_latex, to_markdown

__all__ = ["ComparisonReport", "default_page", "render_comparison", "write_comparison"]

TABLES = ("table.md", "table.tex", "table.csv", "runs.csv")
"""The text files beside the page."""


@dataclass(frozen=True)
class ComparisonReport:
    """What was written.

    Attributes:
        page: the HTML file.
        others: the text files beside it.
        tables: of each problem, as in the page.
        runs: how many finished runs were compared.
        unfinished: names of those that were left out.
    """

    page: Path
    others: tuple[Path, ...]
    tables: Sequence[Sequence[TextTable]]
    runs: int
    unfinished: tuple[str, ...]


def default_page(sweep: Path) -> Path:
    """Return where the report on a sweep goes: into its directory, or beside a packed file in a folder of its name."""
    folder = sweep.with_name(sweep.name.removesuffix(PACKED) or "sweep") if sweep.is_file() else sweep
    return folder / "report.html"


def write_comparison(sweep: Path, out: Path, target: float | None = None) -> ComparisonReport:
    """Write the page ``out`` on a sweep, and ``table.md``, ``table.tex``, ``table.csv`` and ``runs.csv`` beside it.

    Args:
        sweep: a sweep's directory or a packed sweep.
        out: the HTML file.
        target: see :func:`~fedsparsify.report.comparison.compare`.

    Raises:
        RunError: ``out`` has the name of a table, a run cannot be read, runs do not measure the same, or a file cannot
            be written.
    """
    if out.name in TABLES:
        raise RunError(f"{out}: a table is written there; choose another --out for the page, such as report.html")
    found = load_sweep(sweep)
    comparison = compare(found.runs, target)
    tables = all_tables(comparison)
    flat = [table for group in tables for table in group]
    page = render_comparison(found, comparison, tables)
    others = (to_markdown(flat), to_latex(flat), comparison_csv(comparison), runs_csv(comparison))
    texts = {out.name: page, **dict(zip(TABLES, others, strict=True))}
    for name, text in texts.items():
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            replace_file(out.parent / name, text.encode("utf-8"))
        except OSError as error:
            place = out.parent / name
            raise RunError(f"{place}: the report cannot be written ({error.strerror}); choose another --out") from None
    return ComparisonReport(out, tuple(out.parent / name for name in TABLES), tables, len(found.runs), found.unfinished)


def render_comparison(sweep: Sweep, comparison: Comparison, tables: Sequence[Sequence[TextTable]]) -> str:
    """Return the page as text."""
    scripts = page_scripts()
    figures = all_comparison_figures(comparison)
    plots = {
        figure.id: {"data": figure.data, "layout": figure.layout}
        for group in figures
        for figure in (*group.over_columns, *(f for at in group.by_column.values() for f in at))
    }
    return (
        new_environment()
        .get_template("comparison.html.j2")
        .render(
            title=sweep.name,
            sweep=sweep,
            comparison=comparison,
            first=sweep.runs[0],
            problems=list(zip(comparison.problems, tables, figures, strict=True)),
            findings=same_start(comparison.problems),
            alpha=ALPHA,
            plots=plots,
            style=asset("page.css"),
            scripts=scripts,
            hashes=[policy_hash(script) for script in scripts],
        )
    )
