"""The vocabulary of the figures: what a figure is, how a run looks in it, and the traces it is made of.

A run has one colour and one dash pattern in all figures. The colours are those of Okabe and Ito (2008), which
colour-blind readers can tell apart, with a violet for black and yellow, which vanish on one of the two backgrounds.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "COLOURS",
    "PATTERNS",
    "TARGET",
    "Figure",
    "Key",
    "Points",
    "Trace",
    "escape",
    "new_axis",
    "new_dots",
    "new_layout",
    "new_line",
    "plot_height",
    "run_keys",
    "short",
]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8F6FC4")
DASHES = ("", "9,3", "3,2", "9,3,2,3", "16,3", "16,3,2,3")
PATTERNS = ("", "/", ".", "x", "-", "\\")
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x")
MAX_HEIGHT = 880
"""Pixels; a taller figure would be cut by the end of a printed page."""

Trace = dict[str, Any]
Points = Iterable[tuple[float, float, int]]
"""x, y and the round, of one run."""


@dataclass(frozen=True)
class Key:
    """A legend entry: whose line looks how.

    Attributes:
        id: the ``legendgroup`` of the traces that belong to it, in all figures.
        label: the name as the user wrote it, not escaped.
        colour: ``#rrggbb``.
        dash: lengths of dashes and gaps in pixels as SVG's ``stroke-dasharray``, empty for a solid line.
    """

    id: str
    label: str
    colour: str
    dash: str


TARGET = Key("target", "target of the schedule", "#8A8F98", "12,6")


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        id: unique on the page.
        section: id of the part of the page it stands in.
        title: a few words.
        caption: what it shows and how to read it.
        data: traces as plotly.js takes them; their labels are escaped.
        layout: as plotly.js takes it, without colours.
        keys: its legend, empty where one line needs none.
        wide: spans the page.
    """

    id: str
    section: str
    title: str
    caption: str
    data: list[Trace]
    layout: dict[str, Any]
    keys: tuple[Key, ...] = ()
    wide: bool = False


def run_keys(labels: Sequence[str]) -> list[Key]:
    """Return one key a run; the first 42 differ in colour or dash (7 colours and 6 dashes, each cycling)."""
    looks = zip(itertools.cycle(COLOURS), itertools.cycle(DASHES), strict=False)
    return [Key(f"run{i}", label, *look) for i, (label, look) in enumerate(zip(labels, looks, strict=False))]


def new_line(key: Key, points: Points, y_format: str, x_format: str = "") -> Trace:
    """Return a line with one marker a point where there are few; the formats are d3's, as in ``.2%``."""
    rows = list(points)
    x_text = f"%{{x:{x_format}}}, round %{{customdata}}<br>" if x_format else ""
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(rows) <= 30 else "lines",
        "name": escape(key.label),
        "legendgroup": key.id,
        "x": [short(x) for x, _, _ in rows],
        "y": [short(y) for _, y, _ in rows],
        "customdata": [number for _, _, number in rows],
        "line": {"color": key.colour, "dash": key.dash or "solid", "width": 2},
        "marker": {"size": 5, "color": key.colour},
        "hovertemplate": f"{x_text}<b>%{{y:{y_format}}}</b>",
    }


def new_dots(key: Key, index: int, points: Points, y_format: str, x_format: str) -> Trace:
    """Return one marker a point, in the shape of run ``index``."""
    marker = {"size": 6, "opacity": 0.7, "color": key.colour, "symbol": SYMBOLS[index % len(SYMBOLS)]}
    return new_line(key, points, y_format, x_format) | {"mode": "markers", "marker": marker}


def new_layout(xaxis: dict[str, Any], yaxis: dict[str, Any], height: int = 340) -> dict[str, Any]:
    """Return a layout of ``height`` pixels; over rounds, the hover box lists all runs."""
    return {
        "xaxis": new_axis(xaxis),
        "yaxis": new_axis(yaxis),
        "height": height,
        "hovermode": "x unified" if xaxis.get("title") == "Round" else "closest",
    }


def new_axis(settings: dict[str, Any]) -> dict[str, Any]:
    """Return plotly's axis settings; ``title`` is plain text."""
    title = {"text": settings.get("title", ""), "standoff": 8}
    return settings | {"title": title, "automargin": True, "zeroline": False}


def plot_height(rows: int, pixels: int, extra: int = 80) -> int:
    """Return the height of a figure with ``rows`` rows, within what a screen and a printed page bear."""
    return max(260, min(MAX_HEIGHT, rows * pixels + extra))


def short(value: float) -> float | None:
    """Round to six digits, more than a screen shows. NaN and infinity, which JSON lacks, become None: a gap."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def escape(text: str) -> str:
    """Keep plotly.js, which reads labels as pseudo-HTML, from taking a text for a tag or a link."""
    return html.escape(text)
