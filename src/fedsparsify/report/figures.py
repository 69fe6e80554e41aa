"""Runs -> figures, as plain data for plotly.js.

Colours that depend on the theme (text, grid, heat scale) are left out: ``page.js`` fills them in, so that one page
serves light and dark screens and paper.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from fedsparsify.report.groups import group_figure
from fedsparsify.report.plots import (
    COLOURS,
    PATTERNS,
    TARGET,
    Figure,
    Key,
    Trace,
    escape,
    new_axis,
    new_dots,
    new_layout,
    new_line,
    plot_height,
    short,
)
from fedsparsify.report.records import Partition, RoundRecord, Run

__all__ = ["all_figures"]

PERCENT_AXIS = {"tickformat": ".0%"}
ROUND_AXIS = {"title": "Round"}
Pairs = Sequence[tuple[Run, Key]]


def all_figures(runs: Sequence[Run], keys: Sequence[Key]) -> list[Figure]:
    """Return the figures that ``runs``, all of one metric, have data for, in the order of the page."""
    pairs = list(zip(runs, keys, strict=True))
    figures = itertools.chain(
        _score(pairs),
        group_figure(pairs),
        _sparsity(pairs),
        _layers(pairs),
        _layer_history(pairs),
        _alignment(pairs),
        _cost(pairs),
        _partitions(pairs),
    )
    return [_with_legend(figure, len(runs) > 1) for figure in figures if any(map(_has_data, figure.data))]


def _has_data(trace: Trace) -> bool:
    return any(value is not None for value in trace["x"]) and any(value is not None for value in trace["y"])


def _with_legend(figure: Figure, several: bool) -> Figure:
    """Keep the traces with data and, of the keys, those that have a trace; one run alone needs no legend."""
    data = [trace for trace in figure.data if _has_data(trace)]
    drawn = {trace.get("legendgroup") for trace in data}
    keys = tuple(key for key in figure.keys if key.id in drawn)
    return replace(figure, data=data, keys=keys if several or len(keys) > 1 else ())


def _score(pairs: Pairs) -> Iterator[Figure]:
    accuracy = pairs[0][0].metric == "accuracy"
    name = "Accuracy" if accuracy else "Mean absolute error"
    better = "Higher is better." if accuracy else "Lower is better."
    axis = {"title": f"Test {name.lower()}"} | (PERCENT_AXIS if accuracy else {})
    y_format = ".2%" if accuracy else ".3f"
    keys = tuple(key for _, key in pairs)

    def figure(id_: str, title: str, caption: str, xtitle: str, xs: Callable[[Run], Iterable[float]]) -> Figure:
        x_format = "" if xtitle == "Round" else ",.1f"
        data = [
            new_line(key, ((x, r.score, r.round) for x, r in zip(xs(run), run.rounds, strict=True)), y_format, x_format)
            for run, key in pairs
        ]
        layout = new_layout({"title": xtitle}, axis)
        return Figure(f"score-{id_}", "score", f"{name} {title}", caption, data, layout, keys)

    yield figure(
        "rounds",
        "over the rounds",
        f"The merged model on the whole test set after every round. {better}",
        "Round",
        lambda run: (r.round for r in run.rounds),
    )
    yield figure(
        "bytes",
        "for the bytes sent",
        f"The same against everything sent so far, by server and clients. {better} A line further to the left buys the "
        "same result with less communication.",
        "Total MB sent, down and up",
        lambda run: itertools.accumulate((r.bytes_down + r.bytes_up) / 1e6 for r in run.rounds),
    )
    yield figure(
        "seconds",
        "for the training time",
        f"The same against the time clients have spent training, summed over all of them. {better} A line further to "
        "the left needs less computation.",
        "Total seconds of local training",
        lambda run: itertools.accumulate(r.seconds_train for r in run.rounds),
    )
    yield Figure(
        "loss",
        "score",
        "Loss over the rounds",
        "The merged model's loss on the test set. Where it rises while the result holds, the model is growing "
        "overconfident about what it gets wrong.",
        [
            new_line(key, ((r.round, r.loss, r.round) for r in run.rounds if r.loss is not None), ".4f")
            for run, key in pairs
        ],
        new_layout(ROUND_AXIS, {"title": "Test loss"}),
        keys,
    )


def _sparsity(pairs: Pairs) -> Iterator[Figure]:
    targets = {(run.schedule, _is_stepped(run)) for run, _ in pairs if run.schedule}
    data: list[Trace] = []
    for schedule, stepped in sorted(targets):
        trace = new_line(TARGET, ((t, s, t) for t, s in enumerate(schedule)), ".2%")
        data.append(_stepped(trace, stepped, width=6) | {"mode": "lines", "opacity": 0.55, "showlegend": not data})
    for run, key in pairs:
        trace = new_line(key, ((r.round, r.sparsity, r.round) for r in run.rounds), ".2%")
        data.append(_stepped(trace, _is_stepped(run)))
    caption = "The share of parameters that are gone after every round."
    if targets:
        caption += (
            " The broad dashed grey line is what the schedule asks for; a method that merges masks which the clients "
            "chose may leave it."
        )
    yield Figure(
        "sparsity",
        "sparsity",
        "Sparsity over the rounds",
        caption,
        data,
        new_layout(ROUND_AXIS, {"title": "Sparsity", "rangemode": "tozero"} | PERCENT_AXIS),
        (*(key for _, key in pairs), TARGET),
    )


def _layers(pairs: Pairs) -> Iterator[Figure]:
    shown = [(run, key) for run, key in pairs if run.last.layers_nonzero]
    names = dict.fromkeys(layer.name for run, _ in shown for layer in run.layers)
    bars = len(names) * len(shown)
    data: list[Trace] = []
    for index, (run, key) in enumerate(shown):
        kept = [(layer, left) for layer, left in zip(run.layers, run.last.layers_nonzero, strict=True) if layer.size]
        density = [left / layer.size for layer, left in kept]
        # White strokes over the run's colour; plotly's default would draw the strokes only.
        pattern = {"shape": PATTERNS[index % len(PATTERNS)], "fillmode": "overlay", "fgcolor": "#ffffff", "size": 6}
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": escape(key.label),
                "legendgroup": key.id,
                "y": [escape(layer.name) for layer, _ in kept],
                "x": [short(value) for value in density],
                "customdata": [[left, layer.size] for layer, left in kept],
                "marker": {"color": key.colour, "pattern": pattern},
                "hovertemplate": "%{y}<br><b>%{x:.2%}</b>: %{customdata[0]:,} of %{customdata[1]:,} left",
                "text": [f"{100 * value:.3g}%" for value in density] if bars <= 40 else [],
                "textposition": "outside",
                "cliponaxis": False,
            }
        )
    # The margin right of 100% is for the numbers at the ends of the bars.
    xaxis = {"title": "Share of the layer's parameters left", "range": [0, 1.15], "dtick": 0.25} | PERCENT_AXIS
    height = plot_height(len(names), 18 + (14 if len(shown) < 4 else 9) * len(shown))
    yield Figure(
        "layers",
        "sparsity",
        "What is left of each layer",
        "The density of every layer in the newest model. A purge over the whole network at once takes most where "
        "weights are smallest, usually from the largest layers, and may leave others nearly whole.",
        data,
        new_layout(xaxis, {"autorange": "reversed", "type": "category"}, height) | {"bargap": 0.25},
        tuple(key for _, key in shown),
        wide=len(names) > 8 or len(shown) > 2,
    )


def _layer_history(pairs: Pairs) -> Iterator[Figure]:
    run, _ = pairs[0]
    records = [record for record in run.rounds if record.layers_nonzero]
    layers = [(i, layer) for i, layer in enumerate(run.layers) if layer.size]
    if len(pairs) > 1 or len(records) < 2 or all(sum(r.layers_nonzero) == run.parameters for r in records):
        return
    density = [[record.layers_nonzero[i] / layer.size for record in records] for i, layer in layers]
    # Below one in 10,000 a cell is as good as empty, and zero has no logarithm.
    z = [[short(math.log10(max(1e-4, value))) for value in row] for row in density]
    ticks = [digit * 10.0**power for power in (-4, -3, -2, -1) for digit in (1, 2, 5)] + [1.0]
    labels = {"tickvals": [math.log10(tick) for tick in ticks], "ticktext": [f"{100 * tick:g}%" for tick in ticks]}
    lowest = min(value for row in z for value in row if value is not None)
    scale = {"cmin": min(-0.5, lowest), "cmax": 0, "colorbar": {"thickness": 10} | labels}
    heat = {
        "type": "heatmap",
        "coloraxis": "coloraxis",
        "x": [record.round for record in records],
        "y": [escape(layer.name) for _, layer in layers],
        "z": z,
        "customdata": [[short(value) for value in row] for row in density],
        "hovertemplate": "%{y}, round %{x}<br><b>%{customdata:.2%}</b> left<extra></extra>",
    }
    yaxis = {"autorange": "reversed", "type": "category"}
    yield Figure(
        "layer-history",
        "sparsity",
        "How each layer thins out",
        "Density of every layer (rows) over the rounds, on a logarithmic scale: the closer to the background a row "
        "comes, the less of the layer is left.",
        [heat],
        new_layout(ROUND_AXIS, yaxis, plot_height(len(layers), 30)) | {"coloraxis": scale, "hovermode": "closest"},
    )


def _alignment(pairs: Pairs) -> Iterator[Figure]:
    keys = tuple(key for _, key in pairs)
    # A client of round t trains under the mask of round t - 1, so that is the sparsity its update is to be read at.
    drift = [
        [(before.sparsity, r.client_drift, r.round) for before, r in _steps(run) if r.client_drift is not None]
        for run, _ in pairs
    ]
    overlap = [
        [(r.sparsity, r.mask_overlap, r.round) for r in run.rounds if r.mask_overlap is not None] for run, _ in pairs
    ]
    drift_axis = {"title": "Client drift", "rangemode": "tozero"}
    yield Figure(
        "drift-sparsity",
        "alignment",
        "Client drift against sparsity",
        "Client drift is the mean cosine distance between two clients' updates of a round: 0 where all pull the same "
        "way, 1 where their directions have nothing in common. The paper claims that a shrinking common set of "
        "parameters helps clients align; if so, the points sink to the right.",
        [new_dots(key, i, points, ".4f", ".2%") for i, (key, points) in enumerate(zip(keys, drift, strict=True))],
        new_layout({"title": "Sparsity the clients trained under"} | PERCENT_AXIS, drift_axis),
        keys,
    )
    yield Figure(
        "drift-rounds",
        "alignment",
        "Client drift over the rounds",
        "The same drift against time: a dense run beside a sparse one shows how much of the change is due to sparsity "
        "and how much to training going on.",
        [
            new_line(key, ((number, value, number) for _, value, number in points), ".4f")
            for key, points in zip(keys, drift, strict=True)
        ],
        new_layout(ROUND_AXIS, drift_axis),
        keys,
    )
    yield Figure(
        "overlap-sparsity",
        "alignment",
        "Mask overlap against sparsity",
        "Mask overlap is the mean Jaccard index of two clients' masks: 1 where both keep the same parameters. Where "
        "clients purge by themselves, a high value at high sparsity says that they agree on what matters.",
        [new_dots(key, i, points, ".4f", ".2%") for i, (key, points) in enumerate(zip(keys, overlap, strict=True))],
        new_layout({"title": "Sparsity after the round"} | PERCENT_AXIS, {"title": "Mask overlap"}),
        keys,
    )


def _cost(pairs: Pairs) -> Iterator[Figure]:
    keys = tuple(key for _, key in pairs)
    yield _down_and_up(
        pairs,
        "bytes",
        "Bytes in each round",
        "The encoded messages of a round, summed over its clients: above what the server sends, below what comes "
        "back. Both should fall as the network shrinks.",
        "MB",
        lambda before, r, size: size / 1e6,
    )
    yield _down_and_up(
        pairs,
        "bits",
        "Bits for each surviving value",
        "The same messages divided by the survivors that the round's clients train: float32 takes 32 bits, what the "
        "receiver can foresee takes none. Masks and all else are included, also what was sent to clients that failed.",
        "Bits",
        lambda before, r, size: 8 * size / survivors if (survivors := r.participants * before.nonzero) else None,
    )
    spent = [[(r.round, r.encryption.seconds, r.round) for r in run.rounds if r.encryption] for run, _ in pairs]
    if any(spent):
        yield Figure(
            "encryption",
            "cost",
            "Encryption in each round",
            "Processor time of encrypting and decrypting, summed over clients, and of adding up. Only surviving values "
            "are encrypted, so it should fall as the network shrinks.",
            [new_line(key, points, ".3f") for key, points in zip(keys, spent, strict=True) if points],
            new_layout(ROUND_AXIS, {"title": "Seconds", "rangemode": "tozero"}, 320),
            keys,
        )
    times = [
        [(before.sparsity, r.seconds_train / r.participants, r.round) for before, r in _steps(run) if r.participants]
        for run, _ in pairs
    ]
    if any(value for points in times for _, value, _ in points):
        yield Figure(
            "time-sparsity",
            "cost",
            "Training time against sparsity",
            "Seconds one client trains in a round, as a mean over the round's clients. With kernels that skip what is "
            "pruned, the points sink to the right; dense ones multiply by the zeros and stay level.",
            [new_dots(key, i, points, ".3f", ".2%") for i, (key, points) in enumerate(zip(keys, times, strict=True))],
            new_layout(
                {"title": "Sparsity the clients trained under"} | PERCENT_AXIS,
                {"title": "Seconds a client and round", "rangemode": "tozero"},
                400,
            ),
            keys,
        )


def _down_and_up(
    pairs: Pairs,
    id_: str,
    title: str,
    caption: str,
    unit: str,
    measure: Callable[[RoundRecord, RoundRecord, int], float | None],
) -> Figure:
    """Return a figure of what is sent above what comes back; ``measure`` takes (round before, round, bytes)."""
    ways: dict[str, Callable[[RoundRecord], int]] = {"y": lambda r: r.bytes_down, "y2": lambda r: r.bytes_up}
    data = []
    for yaxis, size in ways.items():
        for run, key in pairs:
            points = ((r.round, measure(before, r, size(r)), r.round) for before, r in _steps(run) if size(r))
            line = new_line(key, ((x, y, t) for x, y, t in points if y is not None), ",.3f")
            data.append(line | {"yaxis": yaxis, "showlegend": yaxis == "y"})
    layout = new_layout(ROUND_AXIS, {"title": f"{unit} down", "rangemode": "tozero", "domain": [0.54, 1]}, 400)
    layout["yaxis2"] = new_axis({"title": f"{unit} up", "rangemode": "tozero", "domain": [0, 0.46]})
    layout["xaxis"]["anchor"] = "y2"
    return Figure(id_, "cost", title, caption, data, layout, tuple(key for _, key in pairs))


def _partitions(pairs: Pairs) -> Iterator[Figure]:
    holders: dict[Partition, list[str]] = {}
    for run, key in pairs:
        if run.partition is not None:
            holders.setdefault(run.partition, []).append(key.label)
    for index, (partition, names) in enumerate(holders.items()):
        clients, classes = len(partition.counts), len(partition.class_names)
        yaxis = {"title": "Client", "autorange": "reversed", "dtick": max(1, clients // 20)}
        height = plot_height(clients, 26 if clients <= 20 else 7, 100)
        if classes == 1:
            trace, layout = _bars(partition), new_layout({"title": "Examples"}, yaxis, height)
        else:
            trace, layout = _heat(partition), new_layout({"type": "category"}, yaxis, height)
            scale = {"cmin": 0, "cmax": max(1, max(map(max, partition.counts))), "colorbar": {"thickness": 10}}
            layout["coloraxis"] = scale
        title = f"Examples by client{' and class' if classes > 1 else ''}: {partition.kind}"
        if len(holders) > 1:
            title = f"{partition.kind}: {', '.join(names)}"
        wide = classes > 20 or clients > 40
        yield Figure(f"partition{index}", "data", title, _describe(partition), [trace], layout, wide=wide)


def _bars(partition: Partition) -> Trace:
    return {
        "type": "bar",
        "orientation": "h",
        "x": [row[0] for row in partition.counts],
        "y": list(range(len(partition.counts))),
        "marker": {"color": COLOURS[0]},
        "hovertemplate": "client %{y}<br><b>%{x:,}</b> examples<extra></extra>",
    }


def _heat(partition: Partition) -> Trace:
    clients, classes = len(partition.counts), len(partition.class_names)
    return {
        "type": "heatmap",
        "coloraxis": "coloraxis",
        "x": [escape(name) for name in partition.class_names],
        "y": list(range(clients)),
        "z": partition.counts,
        "xgap": 1 if classes <= 20 else 0,
        "ygap": 1 if clients <= 20 else 0,
        "text": [[f"{count}" if count else "" for count in row] for row in partition.counts],
        "texttemplate": "%{text}" if classes <= 12 and clients <= 20 else "",
        "hovertemplate": "client %{y}, %{x}<br><b>%{z:,}</b> examples<extra></extra>",
    }


def _describe(partition: Partition) -> str:
    totals = [sum(row) for row in partition.counts]
    several = len(partition.class_names) > 1
    text = f"{len(totals)} {'client holds' if len(totals) == 1 else 'clients hold'} {_span(totals)} examples each"
    if several:
        text += f", of {_span([sum(1 for count in row if count) for row in partition.counts])} classes"
    reading = " The stronger a cell's colour, the more examples of the class the client has." if several else ""
    return f"{text}; {sum(totals):,} in all.{reading}"


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _steps(run: Run) -> Iterator[tuple[RoundRecord, RoundRecord]]:
    return itertools.pairwise(run.rounds)


def _is_stepped(run: Run) -> bool:
    table: Any = run.config.get("schedule")
    frequency = table.get("frequency", 1) if isinstance(table, dict) else 1
    return isinstance(frequency, int) and frequency > 1


def _stepped(trace: Trace, stepped: bool, width: int = 2) -> Trace:
    return trace | {"line": trace["line"] | {"shape": "hv" if stepped else "linear", "width": width}}
