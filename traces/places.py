"""`Places`: where in its file each row stood, in memory that does not grow with the rows."""

from __future__ import annotations

from bisect import bisect_right


class Places:
    """Lines of rows, told by the few rows before which other lines (blank ones, comments) stand.

    Without any `add`, as for Parquet, a place is the number of the row, counted from 1.

    >>> places = Places()
    >>> for line in (2, 3, 6):
    ...     places.add(line)
    >>> places.of(1), places.of(2)
    ('line 3', 'line 6')
    """

    def __init__(self) -> None:
        self._rows: list[int] = []  # first rows of runs of consecutive lines
        self._lines: list[int] = []
        self._num_rows = 0
        self._next_line = -1

    def add(self, line: int) -> None:
        """Note the line of the next row."""
        if line != self._next_line:
            self._rows.append(self._num_rows)
            self._lines.append(line)
        self._num_rows += 1
        self._next_line = line + 1

    def of(self, row: int) -> str:
        """Return where a row (0-based) stood."""
        if not self._rows:
            return f"row {row + 1}"
        run = bisect_right(self._rows, row) - 1
        return f"line {self._lines[run] + row - self._rows[run]}"
