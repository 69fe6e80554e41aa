"""The tables of docs/results.md are those of the packed records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedsparsify.report import write_comparison

ROOT = Path(__file__).parents[2]


def test_every_row_of_the_page_is_rebuilt_from_the_packed_records(tmp_path: Path) -> None:
    write_comparison(ROOT / "results" / "sweeps" / "fashion-mnist.tar.xz", tmp_path / "report.html")
    rebuilt = set((tmp_path / "table.md").read_text().splitlines())
    shown = rows_of("## FashionMNIST: every method")
    assert len(shown) > 60
    assert [line for line in shown if line not in rebuilt] == []


def test_the_curves_on_cifar_10_are_those_of_the_records() -> None:
    runs = [ROOT / "results" / "cifar-10" / f"short-{name}-iid" for name in ("fedavg", "fedsparsify-global")]
    dense, sparse = ([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs)
    assert (len(dense), len(sparse)) == (31, 31)
    rebuilt = [
        f"| {a['round']} | {100 * a['accuracy']:.2f} | {100 * b['accuracy']:.2f} | {100 * b['sparsity']:.1f}% |"
        f" {megabytes(a)} | {megabytes(b)} |"
        for a, b in zip(dense, sparse, strict=False)
    ]
    assert rows_of("## CIFAR-10: FedSparsify and FedAvg")[2:] == rebuilt[2::2]


def megabytes(record: dict[str, Any]) -> str:
    return f"{(record['bytes_up'] + record['bytes_down']) / 1e6:.1f}"


def rows_of(heading: str) -> list[str]:
    """Return the lines of the tables in one of the page's sections."""
    text = (ROOT / "docs" / "results.md").read_text()
    section = text[text.index(heading) + len(heading) :].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("|")]
