"""The optional columns of a trace: what each one holds, and which values are allowed.

Priorities and deadlines steer the scheduler, so a trace has them for every query or not at all.
What describes a query (who sent it, how long it is) may be unknown for some: `UNKNOWN_COUNT` where
a whole number is expected, NaN for a size, an empty text for a name.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from traces.texts import Texts
from traces.trace_error import TraceError

Kind = Literal["integer", "number", "text"]
UNKNOWN_COUNT = -1


class TraceColumn(NamedTuple):
    """One optional column: its kind, what it means, and whether single values may be unknown."""

    kind: Kind
    meaning: str
    may_be_unknown: bool = True


OPTIONAL_COLUMNS: dict[str, TraceColumn] = {
    "slo_s": TraceColumn("number", "relative deadline (s)", False),
    "query_class": TraceColumn("integer", "priority class, 0 the default", False),
    "tenant": TraceColumn("text", "who sent it"),
    "session": TraceColumn("text", "what it belongs to, such as a conversation"),
    "prompt_tokens": TraceColumn("integer", "tokens of the prompt"),
    "output_tokens": TraceColumn("integer", "tokens of the answer"),
    "size": TraceColumn("number", "how large it is, in the unit of its source"),
}


def checked_column(name: str, values: Any, num_rows: int) -> Any:
    """Return an optional column as it is kept: read only, of its type, one value per row.

    Raises:
        TraceError: another length, or a value that the column may not hold (names its index).
    """
    kind = OPTIONAL_COLUMNS[name].kind
    if kind == "text":
        column: Any = values if isinstance(values, Texts) else Texts.of(map(str, values))
    else:
        column = _frozen(name, values, np.dtype(np.int64 if kind == "integer" else np.float64))
    if len(column) != num_rows:
        raise TraceError(f"{name} has {len(column)} values for {num_rows} arrivals; give one each")
    if name == "slo_s":
        _check_all(np.isfinite(column) & (column > 0), column, name, "finite and above 0")
    elif name == "size":
        is_good = np.isnan(column) | (np.isfinite(column) & (column >= 0))
        _check_all(is_good, column, name, "finite and at least 0, or NaN where it is unknown")
    elif name.endswith("_tokens"):
        wanted = f"at least 0, or {UNKNOWN_COUNT} where it is unknown"
        _check_all(column >= UNKNOWN_COUNT, column, name, wanted)
    return column


def joined_columns(name: str, first: Any, second: Any, lengths: tuple[int, int]) -> Any:
    """Return two traces' columns one after the other, None where neither has it.

    Raises:
        TraceError: one of them lacks a column that must be known for every query.
    """
    if first is None and second is None:
        return None
    parts = [first, second]
    for i, part in enumerate(parts):
        if part is not None:
            continue
        if not OPTIONAL_COLUMNS[name].may_be_unknown:
            raise TraceError(
                f"{name} is given for one of the traces only; give it for both or none"
            )
        parts[i] = unknown_column(name, lengths[i])
    return Texts.joined(parts) if isinstance(parts[0], Texts) else np.concatenate(parts)


def unknown_column(name: str, num_rows: int) -> Any:
    """Return a column of which nothing is known."""
    kind = OPTIONAL_COLUMNS[name].kind
    if kind == "text":
        return Texts(np.zeros(num_rows, np.int64), ("",))
    is_whole = kind == "integer"
    return np.full(num_rows, UNKNOWN_COUNT if is_whole else np.nan, np.int64 if is_whole else float)


def _frozen(name: str, values: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the values read only; an array that already is stays itself, however large."""
    array = np.asarray(values, dtype=dtype)
    if array.flags.writeable:
        array = array.copy()
    if array.ndim != 1:
        raise TraceError(f"{name} must be one-dimensional, got shape {array.shape}")
    array.flags.writeable = False
    return array


def _check_all(
    is_good: npt.NDArray[np.bool_], values: npt.NDArray[Any], name: str, wanted: str
) -> None:
    bad = np.flatnonzero(~is_good)
    if bad.size:
        i = int(bad[0])
        raise TraceError(f"{name}[{i}] = {values[i]:.9g} must be {wanted}", index=i)
