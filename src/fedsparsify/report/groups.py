"""The figure of scores by group: how well the newest model does at each site, seen in training or not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedsparsify.report.plots import Figure, Key, escape, new_layout, plot_height, short
from fedsparsify.report.records import Run

__all__ = ["group_figure"]


def group_figure(pairs: Sequence[tuple[Run, Key]]) -> Iterator[Figure]:
    """Yield one figure, a bar a group and run, if any run recorded scores by group."""
    shown = [(run, key) for run, key in pairs if run.last.groups]
    if not shown:
        return
    accuracy = shown[0][0].metric == "accuracy"
    first = shown[0][0].last.groups
    names = sorted({name for run, _ in shown for name in run.last.groups}, key=lambda name: _rank(first, name))
    unseen = {name for run, _ in shown for name in run.unseen_groups}
    data = []
    for run, key in shown:
        scores = [run.last.groups.get(name, math.nan) for name in names]
        # Strokes of the background's colour over the run's own; plotly's default would draw the strokes only.
        shapes = ["/" if name in unseen else "" for name in names]
        pattern = {"shape": shapes, "fillmode": "overlay", "fgcolor": "#ffffff", "size": 6}
        form = ".2%" if accuracy else ".3f"
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": escape(key.label),
                "legendgroup": key.id,
                "y": [escape(name) + (" (unseen)" if name in unseen else "") for name in names],
                "x": [short(score) for score in scores],
                "marker": {"color": key.colour, "pattern": pattern},
                "hovertemplate": f"%{{y}}<br><b>%{{x:{form}}}</b>",
            }
        )
    what = "Accuracy" if accuracy else "Mean absolute error"
    axis: dict[str, Any] = {"title": f"Test {what.lower()}", "rangemode": "tozero"}
    caption = f"{what} of the newest model on the test examples of each group, in the order of the first run's."
    if unseen:
        caption += " Hatched, marked “unseen”: no client has an example of the group."
    yield Figure(
        "groups",
        "score",
        f"{what} by group",
        caption,
        data,
        new_layout(
            axis | ({"tickformat": ".0%"} if accuracy else {}),
            {"autorange": "reversed", "type": "category"},
            plot_height(len(names), 12 + 10 * len(shown)),
        )
        | {"bargap": 0.25},
        tuple(key for _, key in shown),
        wide=len(names) > 8,
    )


def _rank(scores: Mapping[str, float], name: str) -> tuple[float, str]:
    score = scores.get(name, math.nan)
    return (score if math.isfinite(score) else math.inf, name)
