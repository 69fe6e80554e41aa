"""A comparison -> figures, as plain data for plotly.js; a method has one colour and dash in all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from fedsparsify.report.comparison import DENSE, Cell, Comparison, Problem, final
from fedsparsify.report.comparison_tables import column_name
from fedsparsify.report.plots import (
    SYMBOLS,
    Figure,
    Key,
    Trace,
    escape,
    new_layout,
    new_line,
    plot_height,
    run_keys,
    short,
)
from fedsparsify.report.records import Run
from fedsparsify.report.significance import mean_and_deviation

__all__ = ["ProblemFigures", "all_comparison_figures"]

MAX_POINTS = 120
"""Of a line over the rounds; a screen shows no more, and a page of a hundred runs stays light."""

LEAST_DENSITY = 1e-4
"""Where a layer of which nothing is left stands on the logarithmic axis."""


@dataclass(frozen=True)
class ProblemFigures:
    """The figures of one problem.

    Attributes:
        over_columns: one point a column.
        by_column: sparsity -> figures at that sparsity, with the dense methods in each.
    """

    over_columns: list[Figure]
    by_column: dict[str, list[Figure]]


def all_comparison_figures(comparison: Comparison) -> list[ProblemFigures]:
    """Return the figures of each problem."""
    keys = dict(zip(comparison.methods, run_keys(comparison.methods), strict=True))
    figures = []
    for index, problem in enumerate(comparison.problems):
        sparse = [column for column in problem.columns if column != DENSE]
        figures.append(
            ProblemFigures(
                [
                    _score_by_sparsity(problem, keys, index),
                    *([] if math.isnan(problem.target) else [_rounds_to_target(problem, keys, index)]),
                ],
                {column_name(c): list(_at_column(problem, keys, index, c)) for c in sparse or [DENSE]},
            )
        )
    return figures


def _score_by_sparsity(problem: Problem, keys: dict[str, Key], index: int) -> Figure:
    accuracy = problem.metric == "accuracy"
    columns = [column for column in problem.columns if column != DENSE] or [DENSE]
    data: list[Trace] = []
    used = []
    for method in problem.methods:
        key = keys[method]
        points = {cell.column: cell.spread(final) for cell in problem.cells if cell.method == method}
        points = {column: point for column, point in points.items() if not math.isnan(point[0])}
        if not points:
            continue
        used.append(key)
        if DENSE in points and columns != [DENSE]:  # a dense method is a level line to compare with
            data.append(_points(key, columns, [points[DENSE]] * len(columns), accuracy, dense=True))
        shown = [column for column in columns if column in points]
        if shown:
            data.append(_points(key, shown, [points[column] for column in shown], accuracy))
    name = "Accuracy" if accuracy else "Mean absolute error"
    yaxis = {"title": f"Test {name.lower()}"} | ({"tickformat": ".1%"} if accuracy else {})
    xaxis = {"title": "Sparsity asked for", "type": "category", "categoryarray": [column_name(c) for c in columns]}
    return Figure(
        f"score-sparsity-{index}",
        "",
        f"{name} against sparsity",
        "After the last round; points are means over seeds, bars one sample standard deviation where there are several"
        " seeds. Thin lines without points are dense methods.",
        data,
        new_layout(xaxis, yaxis, 460) | {"hovermode": "closest"},
        tuple(used),
        wide=True,
    )


def _points(
    key: Key, columns: Sequence[float], points: Sequence[tuple[float, float]], accuracy: bool, *, dense: bool = False
) -> Trace:
    y_format = ".2%" if accuracy else ".3f"
    deviations = [None if math.isnan(deviation) else short(deviation) for _, deviation in points]
    trace = new_line(key, ((0, mean, 0) for mean, _ in points), y_format)
    trace |= {"x": [column_name(column) for column in columns], "mode": "lines" if dense else "lines+markers"}
    trace |= {
        "customdata": [
            ("" if d is None else f" ± {100 * d:.2f} points" if accuracy else f" ± {d:.3f}") for d in deviations
        ]
    }
    if not any(deviations):
        trace["customdata"] = [""] * len(deviations)
    trace["hovertemplate"] = f"%{{x}}<br><b>%{{y:{y_format}}}</b>%{{customdata}}"
    if dense:
        trace["line"] = trace["line"] | {"width": 1.5}
    elif any(deviations):
        trace["error_y"] = {"array": deviations, "color": key.colour, "thickness": 1.2, "width": 4}
    return trace


def _rounds_to_target(problem: Problem, keys: dict[str, Key], index: int) -> Figure:
    columns = problem.columns
    data: list[Trace] = []
    used = []
    for number, method in enumerate(problem.methods):
        key, xs, ys, deviations = keys[method], [], [], []
        for cell in (cell for cell in problem.cells if cell.method == method):
            mean, deviation = mean_and_deviation(problem.rounds_to_target(run) for run in cell.runs.values())
            if not math.isnan(mean):
                xs.append(column_name(cell.column))
                ys.append(mean)
                deviations.append(None if math.isnan(deviation) else short(deviation))
        if not xs:
            continue
        used.append(key)
        trace = new_line(key, ((0, y, 0) for y in ys), ".0f") | {"x": xs, "mode": "markers"}
        trace["marker"] = {"size": 9, "color": key.colour, "symbol": SYMBOLS[number % len(SYMBOLS)]}
        trace["hovertemplate"] = "%{x}<br><b>%{y:.0f}</b> rounds"
        if any(deviations):
            trace["error_y"] = {"array": deviations, "color": key.colour, "thickness": 1.2, "width": 4}
        data.append(trace)
    target = f"{problem.target:.2%}" if problem.metric == "accuracy" else f"{problem.target:.3f}"
    xaxis = {"title": "Sparsity asked for", "type": "category", "categoryarray": [column_name(c) for c in columns]}
    return Figure(
        f"rounds-to-target-{index}",
        "",
        f"Rounds to reach {target}",
        f"The first round with that score, {problem.target_rule}; mean and sample standard deviation over seeds. A"
        " method that misses it with any seed has no point.",
        data,
        new_layout(xaxis, {"title": "Round", "rangemode": "tozero"}, 400)
        | {"hovermode": "closest", "scattermode": "group", "scattergap": 0.3},
        tuple(used),
        wide=True,
    )


def _at_column(problem: Problem, keys: dict[str, Key], index: int, column: float) -> Iterator[Figure]:
    cells = [cell for cell in problem.cells if cell.column in (DENSE, column)]
    accuracy = problem.metric == "accuracy"
    name = "Accuracy" if accuracy else "Mean absolute error"
    axis = {"title": f"Test {name.lower()}"} | ({"tickformat": ".0%"} if accuracy else {})
    place = f"{index}-{column_name(column).rstrip('%').replace('.', '-')}"
    xs: dict[str, tuple[str, str, Callable[[Run], Iterator[float]]]] = {
        "bytes": (
            "for the bytes sent",
            "Total MB sent, down and up",
            lambda run: itertools.accumulate((r.bytes_down + r.bytes_up) / 1e6 for r in run.rounds),
        ),
        "seconds": (
            "for the training time",
            "Total seconds of local training",
            lambda run: itertools.accumulate(r.seconds_train for r in run.rounds),
        ),
    }
    for id_, (title, xtitle, x) in xs.items():
        data = [trace for cell in cells for trace in _curve(cell, keys[cell.method], x, accuracy)]
        yield Figure(
            f"{id_}-{place}",
            "",
            f"{name} {title}, {column_name(column)}",
            "Every round's mean over seeds, at the mean of what was spent until then; the band is one sample standard"
            " deviation. A line further to the left buys the same for less.",
            data,
            new_layout({"title": xtitle, "rangemode": "tozero"}, axis, 420),
            tuple(keys[cell.method] for cell in cells),
        )
    figure = _layers(cells, keys, place, column)
    if figure:
        yield figure


def _curve(cell: Cell, key: Key, x: Callable[[Run], Iterator[float]], accuracy: bool) -> Iterator[Trace]:
    runs = list(cell.runs.values())
    rounds = min(len(run.rounds) for run in runs)
    spent = [list(x(run)) for run in runs]
    step = max(1, -(-rounds // MAX_POINTS))
    shown = sorted({*range(0, rounds, step), rounds - 1})
    xs = [fmean(values[t] for values in spent) for t in shown]
    spreads = [mean_and_deviation(run.rounds[t].score for run in runs) for t in shown]
    if len(runs) > 1:
        band = [(x, m - d, m + d) for x, (m, d) in zip(xs, spreads, strict=True) if not math.isnan(m)]
        red, green, blue = (int(key.colour[i : i + 2], 16) for i in (1, 3, 5))
        yield {
            "type": "scatter",
            "mode": "lines",
            "name": escape(key.label),
            "legendgroup": key.id,
            "x": [short(x) for x, _, _ in (*band, *reversed(band))],
            "y": [*(short(low) for _, low, _ in band), *(short(high) for _, _, high in reversed(band))],
            "fill": "toself",
            "fillcolor": f"rgba({red},{green},{blue},0.15)",
            "line": {"width": 0},
            "hoverinfo": "skip",
            "showlegend": False,
        }
    points = [(x, mean, runs[0].rounds[t].round) for x, (mean, _), t in zip(xs, spreads, shown, strict=True)]
    line = new_line(key, points, ".2%" if accuracy else ".3f", ",.1f")
    yield line | {"mode": "lines", "line": line["line"] | {"width": 1.6}}


def _layers(cells: Sequence[Cell], keys: dict[str, Key], place: str, column: float) -> Figure | None:
    # Runs that measure the same may still be of other layers, where another program wrote the records.
    shown = [
        cell
        for cell in cells
        if all(run.last.layers_nonzero for run in cell.runs.values())
        and len({run.layers for run in cell.runs.values()}) == 1
    ]
    shown = [cell for cell in shown if cell.column != DENSE] or shown
    names = list(dict.fromkeys(layer.name for cell in shown for run in cell.runs.values() for layer in run.layers))
    if not shown or not names:
        return None
    data: list[Trace] = []
    for number, cell in enumerate(shown):
        key = keys[cell.method]
        run = next(iter(cell.runs.values()))
        rows = []
        for position, layer in enumerate(run.layers):
            if layer.size:
                left = fmean(r.last.layers_nonzero[position] / layer.size for r in cell.runs.values())
                rows.append((max(LEAST_DENSITY, left), layer.name, left))
        trace = new_line(key, ((x, 0, 0) for x, _, _ in rows), "")
        data.append(
            trace
            | {
                "mode": "markers",
                "y": [escape(name) for _, name, _ in rows],
                "customdata": [short(left) for _, _, left in rows],
                "marker": {"size": 9, "opacity": 0.8, "color": key.colour, "symbol": SYMBOLS[number % len(SYMBOLS)]},
                "hovertemplate": "%{y}<br><b>%{customdata:.2%}</b> left",
            }
        )
    ticks = [1e-4, 1e-3, 1e-2, 0.1, 1]
    xaxis = {"title": "Share of the layer's parameters left", "type": "log", "tickvals": ticks}
    xaxis |= {"ticktext": [f"{100 * tick:g}%" for tick in ticks]}
    yaxis = {"autorange": "reversed", "type": "category", "categoryarray": [escape(name) for name in names]}
    return Figure(
        f"layers-{place}",
        "",
        f"What is left of each layer, {column_name(column)}",
        "Density of every layer of the final model, mean over seeds, on a logarithmic axis; a layer of which nothing is"
        " left stands at 0.01%.",
        data,
        new_layout(xaxis, yaxis, plot_height(len(names), 48, 110))
        | {"hovermode": "closest", "scattermode": "group", "scattergap": 0.4},
        tuple(keys[cell.method] for cell in shown),
        wide=True,
    )
