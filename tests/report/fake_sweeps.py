"""Sweeps of small made-up runs, and the tables of a page as a reader of HTML sees them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import tomli_w

COUNTS = [[30, 0], [0, 30]]


def add_run(
    sweep: Path,
    method: str,
    seed: int,
    scores: Sequence[float | None],
    *,
    sparsity: float = 0.0,
    metric: str = "accuracy",
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    records: Mapping[str, Any] | None = None,
    **facts: Any,
) -> Path:
    """Write a run of two clients and 100 parameters into a sweep's directory; returns the run's.

    Args:
        scores: of rounds 0, 1, ...; the run was to end with the last of them.
        sparsity: that it is to end with; 0 is a dense method's.
        settings: dotted keys of its config.toml; None leaves a key out.
        records: keys of every line of metrics.jsonl.
        facts: keys of its run.json.
    """
    name = name or f"{method}_final-{sparsity}_seed-{seed}"
    last = len(scores) - 1
    schedule = [sparsity * t / max(1, last) for t in range(last + 1)]
    tables: dict[str, dict[str, Any]] = {}
    keys: dict[str, Any] = {"run.name": name, "run.seed": seed, "run.rounds": last, "data.name": "digits"}
    keys |= {"partition.kind": "iid", "model.name": "2-fc", "method.name": method, "schedule.final": sparsity or 0.95}
    for key, value in (keys | dict(settings or {})).items():
        if value is not None:
            table, _, rest = key.partition(".")
            tables.setdefault(table, {})[rest] = value
    run = {"name": name, "method": method, "model": "2-fc", "dataset": "digits", "seed": seed, "rounds": last}
    run |= {"version": "0.1.0", "parameters": 100, "layers": [["w", [10, 9]], ["b", [10]]]}
    run |= {"partition": {"kind": "iid", "class_names": ["a", "b"], "counts": COUNTS}, "initial": f"digest-{seed}"}
    run |= {"schedule": schedule if sparsity else None, "machine": {"cpu": "none"}}
    lines = [
        {
            "round": t,
            metric: score,
            "sparsity": schedule[t],
            "nonzero": round(100 * (1 - schedule[t])),
            "participants": [0, 1] if t else [],
            "bytes_down": 3_000_000 if t else 0,
            "bytes_up": 1_000_000 if t else 0,
            "seconds_train": 1000.0 + seed if t else 0.0,
            "seconds_round": 0.5,
            "layers_nonzero": [round(90 * (1 - schedule[t])), 10],
        }
        | dict(records or {})
        for t, score in enumerate(scores)
    ]
    folder = sweep / name
    folder.mkdir(parents=True)
    (sweep / "sweep.toml").touch()
    (folder / "run.json").write_text(json.dumps(run | facts))
    (folder / "config.toml").write_text(tomli_w.dumps(tables))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def add_runs(sweep: Path, method: str, finals: Mapping[int, float | None], **settings: Any) -> None:
    """Write a run of two rounds for each seed and final score."""
    start = 0.1 if settings.get("metric", "accuracy") == "accuracy" else 10.0
    for seed, final in finals.items():
        add_run(sweep, method, seed, [start, start, final], **settings)


class PageTables(HTMLParser):
    """A page's tables as rows of ``(text, mark)``, its tags with their attributes, its words and its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[tuple[str, str]]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.scripts: list[str] = []
        self._inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append(("", ""))

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" in self._inside or "style" in self._inside:
            self.scripts += [data] if "script" in self._inside else []
            return
        self.words += data
        if "td" in self._inside or "th" in self._inside:
            text, mark = self.tables[-1][-1].pop()
            if "sup" in self._inside:
                cell = (text, "dagger" if data == "†" else data)
            else:
                cell = (text + data, "bold" if "strong" in self._inside else mark)
            self.tables[-1][-1].append(cell)
