"""Run records -> tables, plots and one HTML page.

Lives here: everything that reads a run directory after the fact. Reads files only and imports nothing of the package
but its errors and the writing of a file, so that a report can be made of a run of any
version, and of one that is still going on.
"""

from __future__ import annotations

from fedsparsify.report.archive import is_sweep, pack
from fedsparsify.report.comparison_page import default_page, write_comparison
from fedsparsify.report.page import write_report
from fedsparsify.report.records import Run, load_run
from fedsparsify.report.tables import HeadlineRow, headline

__all__ = [
    "HeadlineRow",
    "Run",
    "default_page",
    "headline",
    "is_sweep",
    "load_run",
    "pack",
    "write_comparison",
    "write_report",
]
