"""Arrays that others made: read from NumPy's files, and checked before they are cast.

Every error names the file and, where there is one, the row (the first of a file is 1).
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from supernet.graphs.graph_store import GraphDataError

# What NumPy raises for a file that is empty, cut off, spoilt, or of another kind.
_UNREADABLE = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    NotImplementedError,  # a compression that zipfile does not know
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    MemoryError,  # a header of more than there is: of a spoilt file, as a rule
    OverflowError,
)


def read_npy(path: Path) -> np.ndarray:
    """Return the array of a .npy file. Raises GraphDataError for another file, or none."""
    found = _loaded(path, "a readable .npy file")
    if not isinstance(found, np.ndarray):
        raise GraphDataError(f"{path}: an archive of several arrays, expected one (numpy.save)")
    return found


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of an .npz. Raises GraphDataError for another file, or none."""
    found = _loaded(path, "an .npz archive")
    if isinstance(found, np.ndarray):
        raise GraphDataError(f"{path}: a single array, expected an archive (numpy.savez)")
    others = sorted(name for name, array in found.items() if not isinstance(array, np.ndarray))
    if others:  # NumPy returns the bytes of what is no .npy
        raise GraphDataError(f"{path}: {', '.join(others)} is no array (numpy.savez)")
    return found


def _loaded(path: Path, kind: str) -> np.ndarray | dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:  # NumPy leaves a broken archive open
            found: Any = np.load(file, allow_pickle=False)
            return found if isinstance(found, np.ndarray) else dict(found)
    except FileNotFoundError:
        raise GraphDataError(f"{path}: no such file") from None
    except _UNREADABLE as error:
        raise GraphDataError(f"{path}: not {kind} ({error})") from None


def whole_numbers(
    array: np.ndarray,
    where: str,
    *,
    what: str,
    low: int,
    high: int,
    columns: int = 1,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Return int64 (n, columns) of an array of that shape, or (n,) where it is one column.

    `where` names the file, `what` a number of it, `rows` (n,) where each row stands if not at 1,
    2, ... Raises GraphDataError for another shape, for what is not whole numbers (a mask is not
    ids), and for the first one outside `low` to `high`.
    """
    table = array[:, None] if array.ndim == 1 and columns == 1 else array
    is_empty = table.size == 0 and table.dtype.kind == "f"  # what NumPy makes of an empty list
    if table.ndim != 2 or table.shape[1] != columns or not (table.dtype.kind in "iu" or is_empty):
        shape = "(n,)" if columns == 1 else f"(n, {columns})"
        hint = "; the ids of a mask are numpy.flatnonzero(mask)" if array.dtype == bool else ""
        raise GraphDataError(
            f"{where}: holds {array.dtype} {array.shape}, expected whole numbers {shape}{hint}"
        )
    check_range(table, where, what=what, low=low, high=high, rows=rows)
    return table.astype(np.int64)


def check_range(
    table: np.ndarray,
    where: str,
    *,
    what: str,
    low: int,
    high: int,
    rows: np.ndarray | None = None,
) -> None:
    """Raise GraphDataError for the first number of whole ones (n, columns) that is out of range."""
    wrong = np.argwhere((table < low) | (table > high))
    if len(wrong):
        row, column = wrong[0]
        at = row + 1 if rows is None else rows[row]
        raise GraphDataError(
            f"{where}, row {at}: {what} {table[row, column]}, allowed {low} to {high}"
        )


def feature_matrix(array: np.ndarray, where: str, rows: np.ndarray | None = None) -> np.ndarray:
    """Return (n, F) as float32; `rows` is where each row stands if not at 1, 2, ...

    Raises GraphDataError for another shape, for what is no real number, and for the first row with
    a feature that is not finite, in float32 either.
    """
    if array.ndim != 2 or array.dtype.kind not in "buif":
        raise GraphDataError(f"{where}: holds {array.dtype} {array.shape}, expected (nodes, F)")
    with np.errstate(over="ignore"):  # found below
        matrix = np.ascontiguousarray(array, dtype=np.float32)
    wrong = np.flatnonzero(~np.isfinite(matrix).all(1))
    if len(wrong):
        at = wrong[0] + 1 if rows is None else rows[wrong[0]]
        raise GraphDataError(
            f"{where}, row {at}: a feature is NaN, infinite or too large for float32"
        )
    return matrix
