"""The numbers of a run in one row, and what sets runs apart."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from statistics import fmean
from typing import Any

from fedsparsify.report.records import Encryption, Metric, Run, printable

__all__ = ["HeadlineRow", "config_differences", "headline", "labels"]

BYTES_PER_FLOAT32 = 4


@dataclass(frozen=True)
class HeadlineRow:
    """The outcome of one run.

    Attributes:
        name: the run's name, made unique among the runs it was asked for with.
        rounds_done: the newest recorded round; below ``rounds_total`` while the run is going on.
        metric: what the next three measure: ``"accuracy"`` (fraction, higher is better) or ``"mae"`` (lower is).
        final: score after the newest round.
        last_ten: mean score of the last ten rounds, of all where there are fewer (the initial model does not count,
            unless there is nothing else).
        best: best score of any round; NaN where no round has a finite one.
        sparsity: fraction of parameters that are pruned.
        parameters_left: parameters that are not pruned, of ``parameters``.
        megabytes: 10^6 bytes of all messages, down and up, over all rounds.
        dense_megabytes: the same had every participant received and sent all parameters as float32.
        dense_ratio: ``megabytes / dense_megabytes``; None where no participants are recorded.
        seconds_train: local training time, summed over clients and rounds.
        seconds_wall: wall time of all rounds.
        failures: how many times a client was left out.
        uplink: what clients round their updates to; ``"float32"`` is not at all.
        scheme: how models were encrypted for merging; empty where they were not.
        encryption: what that took in all rounds; None where models were merged in the clear.
    """

    name: str
    method: str
    rounds_done: int
    rounds_total: int
    metric: Metric
    final: float
    last_ten: float
    best: float
    sparsity: float
    parameters_left: int
    parameters: int
    megabytes: float
    dense_megabytes: float
    dense_ratio: float | None
    seconds_train: float
    seconds_wall: float
    failures: int
    uplink: str
    scheme: str = ""
    encryption: Encryption | None = None


def headline(runs: Sequence[Run]) -> list[HeadlineRow]:
    """Return one row a run, in the order of ``runs``."""
    return [_row(run, name) for run, name in zip(runs, labels(runs), strict=True)]


def _row(run: Run, name: str) -> HeadlineRow:
    scores = [record.score for record in run.rounds]
    trained = [record.score for record in run.rounds if record.round > 0] or scores
    finite = [score for score in scores if math.isfinite(score)]
    settings = _flatten(run.config)
    best = max if run.metric == "accuracy" else min
    transfers = 2 * sum(record.participants for record in run.rounds)
    megabytes = sum(record.bytes_down + record.bytes_up for record in run.rounds) / 1e6
    dense_megabytes = BYTES_PER_FLOAT32 * run.parameters * transfers / 1e6
    return HeadlineRow(
        name=name,
        method=run.method,
        rounds_done=run.last.round,
        rounds_total=run.rounds_total,
        metric=run.metric,
        final=run.last.score,
        last_ten=fmean(trained[-10:]),
        best=best(finite, default=math.nan),
        sparsity=run.last.sparsity,
        parameters_left=run.last.nonzero,
        parameters=run.parameters,
        megabytes=megabytes,
        dense_megabytes=dense_megabytes,
        dense_ratio=megabytes / dense_megabytes if dense_megabytes else None,
        seconds_train=sum(record.seconds_train for record in run.rounds),
        seconds_wall=sum(record.seconds_round for record in run.rounds),
        failures=sum(len(record.failures) for record in run.rounds),
        uplink=settings.get("wire.uplink", '"float32"').strip('"'),
        scheme=settings.get("encryption.scheme", "").strip('"').removeprefix("none").upper(),
        encryption=_total([record.encryption for record in run.rounds if record.encryption is not None]),
    )


def _total(rounds: Sequence[Encryption]) -> Encryption | None:
    if not rounds:
        return None
    columns = zip(*(astuple(one) for one in rounds), strict=True)
    return Encryption(*(sum(column) for column in columns))


def labels(runs: Sequence[Run]) -> list[str]:
    """Return a unique label a run: its name, and where runs share one, the seed or directory that tells them apart."""
    counts = Counter(run.name for run in runs)
    return [
        run.name if counts[run.name] == 1 else f"{run.name} ({_distinction(run, index, runs)})"
        for index, run in enumerate(runs)
    ]


def _distinction(run: Run, index: int, runs: Sequence[Run]) -> str:
    namesakes = [other for other in runs if other.name == run.name]
    telling: tuple[Callable[[Run], str], ...] = (
        lambda r: f"seed {r.seed}",
        lambda r: printable(r.path.resolve().name),
        lambda r: printable(r.path),
    )
    for tell in telling:
        if len({tell(other) for other in namesakes}) == len(namesakes):
            return tell(run)
    return f"run {index + 1}"


def config_differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return the settings in which ``runs`` differ: (dotted key, one value a run), in the order of the files.

    >>> _flatten({"train": {"lr": 0.02}, "method": {"name": "fedavg"}})
    {'train.lr': '0.02', 'method.name': '"fedavg"'}
    """
    flat = [_flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    rows = [(key, [settings.get(key, "–") for settings in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False, default=str)
    return flat
