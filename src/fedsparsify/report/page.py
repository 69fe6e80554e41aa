"""Figures, tables and words -> one HTML file that needs no network.

Everything the page runs is inside it, and its content security policy admits only that: two scripts, named by their
SHA-256, and no address at all. So a text of a hostile peer that got past the escaping still could not run or load
anything.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedsparsify.errors import RunError
from fedsparsify.files import replace_file
from fedsparsify.report.figures import all_figures
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
    # Here, as reading plotly costs half a second that `import fedsparsify.report` should not.
    from plotly.offline import get_plotlyjs

    # A browser hashes a script with its line ends made one character.
    scripts = [script.replace("\r\n", "\n") for script in (get_plotlyjs(), _asset("page.js"))]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=names[0] if len(runs) == 1 else f"Comparison of {len(runs)} runs",
            runs=list(zip(runs, keys, headline(runs), strict=True)),
            sections=[(id_, title, [f for f in figures if f.section == id_]) for id_, title in SECTIONS.items()],
            plots={figure.id: {"data": figure.data, "layout": figure.layout} for figure in figures},
            failures=failures[:MAX_FAILURES],
            failures_left_out=max(0, len(failures) - MAX_FAILURES),
            differences=config_differences(runs),
            style=_asset("page.css"),
            scripts=scripts,
            hashes=[_csp_hash(script) for script in scripts],
        )
    )


def _failures(run: Run) -> list[Failure]:
    return [failure for record in run.rounds for failure in record.failures]


def _environment() -> Environment:
    environment = Environment(
        # Not select_autoescape: it goes by the file's ending and would leave .j2 unescaped.
        autoescape=True,
        loader=PackageLoader("fedsparsify.report", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {"percent": _percent, "count": _count, "score": _score, "duration": _duration, "mb": _mb}
    return environment


def _asset(name: str) -> str:
    return files("fedsparsify.report").joinpath(name).read_text(encoding="utf-8")


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _percent(fraction: float, digits: int = 2) -> str:
    return f"{100 * fraction:.{digits}f}%" if math.isfinite(fraction) else "–"


def _count(value: int) -> str:
    return f"{value:,}"


def _score(value: float, metric: str) -> str:
    return _percent(value) if metric == "accuracy" else f"{value:.3f}" if math.isfinite(value) else "–"


def _mb(megabytes: float) -> str:
    return f"{megabytes:,.0f}" if megabytes >= 100 else f"{megabytes:.3g}"


def _duration(seconds: float) -> str:
    """Return three digits in the unit that fits.

    >>> _duration(4.21), _duration(75.2), _duration(5470.0)
    ('4.2 s', '1.3 min', '1.5 h')
    """
    if not math.isfinite(seconds):
        return "–"
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"
