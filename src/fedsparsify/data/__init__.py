"""Data sets, their files and checksums, and how examples are split over clients.

Only loading, converting and splitting lives here; nothing that trains, and no import above errors, state and plugins.
"""

from __future__ import annotations

from .datasets import DATASETS, Dataset, as_dataset, load

__all__ = ["DATASETS", "Dataset", "as_dataset", "load"]
