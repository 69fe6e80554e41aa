"""What all pages are made with: templates, number formats, and a policy that admits the page's own scripts only."""

from __future__ import annotations

import base64
import hashlib
import math
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["asset", "new_environment", "page_scripts", "policy_hash", "show_percent"]


def new_environment() -> Environment:
    """Return the templates' environment; whatever they insert is escaped."""
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
    environment.filters |= {"percent": show_percent, "count": _count, "score": _score, "duration": _duration, "mb": _mb}
    return environment


def asset(name: str) -> str:
    """Return a file of this folder as text."""
    return files("fedsparsify.report").joinpath(name).read_text(encoding="utf-8")


def page_scripts() -> list[str]:
    """Return plotly.js and the page's own script, as a browser hashes them."""
    # Here, as reading plotly costs half a second that `import fedsparsify.report` should not.
    from plotly.offline import get_plotlyjs

    # A browser hashes a script with its line ends made one character.
    return [script.replace("\r\n", "\n") for script in (get_plotlyjs(), asset("page.js"))]


def policy_hash(script: str) -> str:
    """Return what a content security policy calls a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def show_percent(fraction: float, digits: int = 2) -> str:
    """Return a fraction in percent; a dash for NaN."""
    return f"{100 * fraction:.{digits}f}%" if math.isfinite(fraction) else "–"


def _count(value: int) -> str:
    return f"{value:,}"


def _score(value: float, metric: str) -> str:
    return show_percent(value) if metric == "accuracy" else f"{value:.3f}" if math.isfinite(value) else "–"


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
