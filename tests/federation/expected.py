"""What a deployment's run must give: the simulator's run, in which whoever must be missing is taken out of a round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedsparsify import runs
from fedsparsify.config import load_settings
from fedsparsify.experiment import prepare
from fedsparsify.federation import Reply, Simulator

DIGITS = """
[data]
name = "digits"

[partition]
kind = "classes"
classes_per_client = 4

[federation]
clients = 3
min_clients = 2

[model]
name = "2-fc"
inputs = 64

[method]
name = "fedsparsify-local"

[schedule]
final = 0.9

[train]
lr = 0.1
epochs = 1

[run]
rounds = 5

[deployment]
patience = 400.0
deadline = 400.0
"""
FASHION = DIGITS.replace("digits", "fashion-mnist").replace("inputs = 64", "inputs = 784").replace("-local", "-global")

Missing = Mapping[int, set[int]]


class Without(Simulator):
    """Loses replies: round -> clients."""

    missing: Missing

    def exchange(self, round: int, broadcasts: Mapping[int, bytes]) -> Iterator[Reply]:
        for reply in super().exchange(round, broadcasts):
            lost = reply.client in self.missing.get(round, ())
            yield Reply(reply.client, None, "lost") if lost else reply


def simulated(
    settings: Path, out: Path, monkeypatch: pytest.MonkeyPatch, missing: Missing | None = None, *overrides: str
) -> tuple[bytes, list[dict[str, Any]]]:
    """Return the final model and the records of the same run in this process."""
    monkeypatch.setattr(runs, "Simulator", type("_", (Without,), {"missing": missing or {}}))
    records: list[dict[str, Any]] = []

    class Keep:
        def client_done(self, round: int, done: int, total: int) -> None: ...
        def round_done(self, state: object, record: dict[str, Any]) -> None:
            records.append(record)

    path = runs.start(prepare(load_settings(settings, overrides), "here"), out, [Keep()])
    return (path / "model.fsp").read_bytes(), records


def without_time(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def timeless(table: Mapping[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in table.items() if not key.startswith("seconds")}
        return {key: timeless(value) if isinstance(value, Mapping) else value for key, value in kept.items()}

    return [timeless(record) for record in records]


def failures(records: list[dict[str, Any]]) -> dict[int, list[int]]:
    """Return round -> the clients that were left out, where there are any."""
    return {r["round"]: [f["client"] for f in r["failures"]] for r in records if r["failures"]}


def reasons(records: list[dict[str, Any]], client: int) -> dict[int, str]:
    return {r["round"]: f["reason"] for r in records for f in r["failures"] if f["client"] == client}
