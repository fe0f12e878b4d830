"""Cells of a foreign table: the kinds of value, and a column of them while it is read."""

from __future__ import annotations

import math
from array import array
from datetime import UTC, datetime
from typing import Any

import numpy as np

from traces.texts import Texts
from traces.trace import FloatArray, TraceError

KINDS = {
    "number": "a finite number",
    "time": "a time such as 2023-11-16 18:17:03.97",
    "count": "a whole number of at least 0, or nothing",
    "size": "a finite number of at least 0, or nothing",
    "text": "a text",
}
"""What a column may hold. An unknown count is -1 and an unknown size NaN; texts may be empty."""


class Column:
    """One column while it is read: eight bytes a cell, and each text once."""

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self._codes: dict[str, int] = {}
        self._values = array("q" if kind == "text" else "d")
        self._convert = {
            "number": finite,
            "time": seconds_since_1970,
            "count": count_or_unknown,
            "size": size_or_unknown,
            "text": self._code,
        }[kind]

    def add(self, cell: Any, where: str) -> None:
        """Take the next row's cell. Raises TraceError, naming `where`, for one of another kind."""
        try:
            self._values.append(self._convert(cell))  # type: ignore[arg-type] # as the kind is
        except (ValueError, TypeError, OverflowError):
            raise TraceError(
                f"{where}, column {self.name}: {shown(cell)} is not {KINDS[self.kind]}"
            ) from None

    def numbers(self) -> FloatArray:
        """Return the numbers read."""
        return np.frombuffer(self._values, np.float64) if self._values else np.empty(0)

    def texts(self) -> Texts:
        """Return the texts read."""
        return Texts(np.array(self._values, dtype=np.int64), tuple(self._codes))

    def _code(self, cell: Any) -> int:
        text = "" if cell is None else str(cell)
        code = self._codes.get(text)
        if code is None:
            text.encode()  # half of a surrogate pair can't be written anywhere: a ValueError
            code = self._codes[text] = len(self._codes)
        return code


def place_of(path: object, header: list[str], name: str) -> int:
    """Return where a column stands. Raises TraceError when it is missing, or there twice."""
    shown = ", ".join(header)[:200] or "-"
    if name not in header:
        other = next((c for c in (";", "\t", ",") if c in "".join(header)), None)
        hint = f" (they hold {other!r}: is it the delimiter?)" if other else ""
        raise TraceError(f"{path}, line 1: no column {name!r}; the columns are {shown}{hint}")
    if header.count(name) > 1:
        raise TraceError(f"{path}: two columns are called {name!r}: {shown}")
    return header.index(name)


def finite(value: Any) -> float:
    """Return a number. Raises ValueError or TypeError for another thing, True and False too."""
    if isinstance(value, bool):
        raise TypeError("a truth value")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def count_or_unknown(value: Any) -> float:
    """Return a whole number of at least 0, -1 where nothing stands."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return -1.0
    number = finite(value)
    if number < 0 or number != math.floor(number) or number > 2**53:
        raise ValueError("no count")
    return number


def size_or_unknown(value: Any) -> float:
    """Return a number of at least 0, NaN where nothing stands."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    number = finite(value)
    if number < 0:
        raise ValueError("no size")
    return number


def seconds_since_1970(text: Any) -> float:
    """Return an ISO 8601 time in seconds since 1970, UTC where it names no zone.

    Microseconds are kept, finer digits are not.

    >>> seconds_since_1970("1970-01-01 00:01:00.5")
    60.5
    """
    if not isinstance(text, str):
        raise TypeError("no text")
    moment = datetime.fromisoformat(text.strip())
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def shown(value: Any) -> str:
    """Return a value as an error shows it, cut short."""
    text = repr(value)
    return text if len(text) <= 42 else f"{text[:41]}..."
