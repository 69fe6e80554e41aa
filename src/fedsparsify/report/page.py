"""Figures, tables and words -> one HTML file that needs no network.

Everything the page runs is inside it, and its content security policy admits only that: two scripts, named by their
SHA-256, and no address at all. So a text of a hostile peer that got past the escaping still could not run or load
anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedsparsify.errors import RunError
from fedsparsify.files import replace_file
from fedsparsify.report.figures import all_figures
from fedsparsify.report.html import asset, new_environment, page_scripts, policy_hash
from fedsparsify.report.plots import run_keys
from fedsparsify.report.records import Failure, Run, load_run
from fedsparsify.report.tables import config_differences, headline, labels

__all__ = ["render", "write_report"]

MAX_FAILURES = 200
"""Rows of the failure table; peers that fail on purpose must not be able to make the page unreadable."""

SECTIONS = {
    "score": "Result",
    "sparsity": "Sparsity",
    "alignment": "Do the clients align?",
    "cost": "Cost of a round",
    "data": "Who holds which data",
}


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write one HTML page on the run directories ``runs``, side by side, to the file ``out``, and return ``out``.

    The file is replaced as a whole or not at all.

    Raises:
        RunError: a run cannot be read, the runs do not measure the same, or ``out`` cannot be written.
    """
    page = render([load_run(path) for path in runs]).encode("utf-8")
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, page)
    except OSError as error:
        raise RunError(f"{out}: the report cannot be written ({error.strerror}); choose another --out") from None
    return out


def render(runs: Sequence[Run]) -> str:
    """Return the page as text.

    Raises:
        RunError: there is no run, or some measure accuracy and some mean absolute error.
    """
    if not runs:
        raise RunError("no run directory was given to report on; name at least one")
    names = labels(runs)
    for run, name in zip(runs, names, strict=True):
        if run.metric != runs[0].metric:
            raise RunError(
                f"{names[0]} measures {runs[0].metric} and {name} measures {run.metric}, which have no common axis; "
                "report them separately"
            )
    keys = run_keys(names)
    figures = all_figures(runs, keys)
    failures = [(name, failure) for run, name in zip(runs, names, strict=True) for failure in _failures(run)]
    scripts = page_scripts()
    return (
        new_environment()
        .get_template("page.html.j2")
        .render(
            title=names[0] if len(runs) == 1 else f"Comparison of {len(runs)} runs",
            runs=list(zip(runs, keys, headline(runs), strict=True)),
            sections=[(id_, title, [f for f in figures if f.section == id_]) for id_, title in SECTIONS.items()],
            plots={figure.id: {"data": figure.data, "layout": figure.layout} for figure in figures},
            failures=failures[:MAX_FAILURES],
            failures_left_out=max(0, len(failures) - MAX_FAILURES),
            differences=config_differences(runs),
            style=asset("page.css"),
            scripts=scripts,
            hashes=[policy_hash(script) for script in scripts],
        )
    )


def _failures(run: Run) -> list[Failure]:
    return [failure for record in run.rounds for failure in record.failures]
