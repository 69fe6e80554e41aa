"""CSV files of numbers and names: read once, with every fault told by its file, line and column."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

__all__ = ["Table"]


class Table:
    r"""The cells of a CSV file with a header line.

    Args:
        content: the file, UTF-8.
        name: how messages call it.
        needed: columns that must be there.

    Attributes:
        columns: names of the columns, in order.
        name: how messages call the file.

    Raises:
        DataError: it is no text, has no header or no row, names a column twice, lacks a needed one, or has a row of
            another length.

    >>> Table(b"age,site\n31,Oulu\n", "people.csv", ["age"]).numbers(["age"])
    array([[31.]])
    """

    def __init__(self, content: bytes, name: str, needed: Sequence[str]) -> None:
        self.name = name
        try:
            lines = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
            rows = [(lines.line_num, row) for row in lines if row]
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{name} is no CSV file in UTF-8 ({error}): get it again") from error
        if len(rows) < 2:
            raise DataError(f"{name} has {len(rows)} lines: it needs a header and at least one row")
        self.columns = rows[0][1]
        self._rows = rows[1:]
        for column in needed:
            if column not in self.columns:
                raise DataError(f'{name} has no column "{column}", only {", ".join(self.columns[:9])}: add it')
        if len(set(self.columns)) < len(self.columns):
            twice = next(c for c in self.columns if self.columns.count(c) > 1)
            raise DataError(f'{name} has two columns "{twice}": rename one')
        for line, row in self._rows:
            if len(row) != len(self.columns):
                raise DataError(
                    f"{name}, line {line}: {len(row)} cells for {len(self.columns)} columns; mend or drop the line"
                )

    def __len__(self) -> int:
        return len(self._rows)

    def line(self, row: int) -> str:
        """Return where a row stands, for messages."""
        return f"{self.name}, line {self._rows[row][0]}"

    def texts(self, column: str) -> list[str]:
        """Return the cells of a column.

        Raises:
            DataError: one is empty.
        """
        at = self.columns.index(column)
        for line, row in self._rows:
            if not row[at].strip():
                raise DataError(f"{self.name}, line {line}: {column} is empty; fill it in or drop the line")
        return [row[at].strip() for _, row in self._rows]

    def numbers(self, columns: Sequence[str]) -> NDArray[np.float64]:
        """Return float64[rows, columns].

        Raises:
            DataError: a cell is no finite number.
        """
        at = [self.columns.index(column) for column in columns]
        values = np.empty((len(self._rows), len(at)))
        for i, (line, row) in enumerate(self._rows):
            try:
                values[i] = [float(row[k]) for k in at]
            except ValueError:
                values[i] = math.nan
            if not np.isfinite(values[i]).all():
                k = next(k for k in at if not _is_finite(row[k]))
                raise DataError(
                    f'{self.name}, line {line}: {self.columns[k]} = "{row[k][:40]}" is no finite number; '
                    "mend the cell or drop the line"
                )
        return values


def _is_finite(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False
