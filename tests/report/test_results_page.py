"""The tables of docs/results.md are those of the packed records."""

from __future__ import annotations

from pathlib import Path

from fedsparsify.report import write_comparison

ROOT = Path(__file__).parents[2]


def test_every_row_of_the_page_is_rebuilt_from_the_packed_records(tmp_path: Path) -> None:
    write_comparison(ROOT / "results" / "sweeps" / "fashion-mnist.tar.xz", tmp_path / "report.html")
    rebuilt = set((tmp_path / "table.md").read_text().splitlines())
    shown = [line for line in (ROOT / "docs" / "results.md").read_text().splitlines() if line.startswith("|")]
    assert len(shown) > 60
    assert [line for line in shown if line not in rebuilt] == []
