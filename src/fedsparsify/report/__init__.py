"""Run records -> tables, plots and one HTML page.

Lives here: everything that reads a run directory after the fact. Reads files only and imports nothing of the package
but its errors and the writing of a file, so that a report can be made of a run of any
version, and of one that is still going on.
"""

from __future__ import annotations

from fedsparsify.report.page import write_report
from fedsparsify.report.records import Run, load_run
from fedsparsify.report.tables import HeadlineRow, headline

__all__ = ["HeadlineRow", "Run", "headline", "load_run", "write_report"]
