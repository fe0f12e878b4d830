"""Azure Functions 2019: the per-minute counts files, one or fourteen, and choices among functions.

File (CC-BY 4.0, Microsoft; Shahrad et al., "Serverless in the Wild", ATC 2020): columns HashOwner,
HashApp, HashFunction, Trigger, then one column per minute, named by its number (the first need not
be 1). Days are read one after the other; only the chosen functions' rows are kept, and where
nobody asks for single functions a day is added up before the next is read.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.sources.daily_files import daily_files
from traces.text_files import open_text
from traces.trace import IntArray, TraceError

COLUMNS = ("HashOwner", "HashApp", "HashFunction", "Trigger")
Function = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InvocationCounts:
    """Invocations per function and minute.

    `counts` is (functions, minutes), int32, or int64 where functions are added up. `functions`
    holds (owner, app, function, trigger) per row; `first_minute` is the number of the
    first minute column (minute of the day, 1-based in the original files); `files` were read.
    """

    functions: tuple[Function, ...]
    counts: npt.NDArray[np.signedinteger[Any]]
    first_minute: int
    source: str
    files: tuple[str, ...] = ()

    @property
    def per_minute(self) -> IntArray:
        """Invocations of all functions per minute."""
        return self.counts.sum(axis=0, dtype=np.int64)

    @property
    def per_function(self) -> IntArray:
        """Invocations of each function over all minutes."""
        return self.counts.sum(axis=1, dtype=np.int64)

    def busiest(self, top: int) -> InvocationCounts:
        """Return the `top` functions with the most invocations (ties: first in the file)."""
        return self._rows(_ranked(self.per_function, Choice(top=top)))

    def _rows(self, rows: Sequence[int]) -> InvocationCounts:
        functions = tuple(self.functions[i] for i in rows)
        return replace(self, functions=functions, counts=self.counts[list(rows)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which functions: all conditions that are given hold.

    `function` is the start of the function's hash, `trigger` its kind (http, timer, queue ...);
    then `top` keeps the busiest, or `share` the fewest busiest that make up this fraction of the
    invocations.
    """

    function: str | None = None
    trigger: str | None = None
    top: int | None = None
    share: float | None = None

    def accepts(self, function: Function) -> bool:
        """Say whether the names of a function fit."""
        return (self.trigger is None or function[3] == self.trigger) and (
            self.function is None or function[2].startswith(self.function)
        )

    @property
    def is_ranking(self) -> bool:
        """Whether the choice depends on how often functions are called."""
        return self.top is not None or self.share is not None


def read_counts(path: Path | str, choice: Choice | None = None) -> InvocationCounts:
    """Read the chosen functions of a counts file, plain or `.gz`, or of a folder of daily files.

    Functions that a day's file lacks were not called on that day.

    Raises:
        TraceError: names the file and line and what is expected there, or the choice that nothing
            fulfils.
    """
    choice = choice or Choice()
    files = daily_files(Path(path))
    if len(files) == 1:
        whole = _read_file(files[0], choice)
        _check_found(len(whole.functions), files[0], choice)
        return whole._rows(_ranked(whole.per_function, choice)) if choice.is_ranking else whole
    kept = _chosen_over_days(files, choice) if choice.is_ranking else None
    whole = _joined([_read_file(file, choice, kept) for file in files], Path(path).name)
    _check_found(len(whole.functions), files[0], choice)
    return whole


def read_totals(path: Path | str, choice: Choice | None = None) -> InvocationCounts:
    """Return one row per day's file, all chosen functions added up: fourteen days in little memory.

    The result's single row has the trigger `all`; see `read_counts` for the choice and the errors.
    """
    choice = choice or Choice()
    files = daily_files(Path(path))
    if len(files) == 1:
        return read_counts(path, choice)
    kept = _chosen_over_days(files, choice) if choice.is_ranking else None
    days: list[InvocationCounts] = []
    num_found = 0
    for file in files:
        day = _read_file(file, choice, kept)
        num_found += len(day.functions)
        total = day.per_minute[None]  # of all functions more than 32 bit may hold
        days.append(replace(day, functions=(("", "", "", "all"),), counts=total))
    _check_found(num_found, files[0], choice)
    return _joined(days, Path(path).name)


def _rows_of(path: Path) -> Iterator[tuple[int, list[str], list[int]]]:
    """Yield (line number, row, minute numbers) of a counts file."""
    line = 1
    try:
        with open_text(path) as stream:
            reader = csv.reader(stream)
            minutes = _minutes(next(filter(None, reader), []), f"{path}, line 1")
            for row in reader:
                line = reader.line_num
                if any(map(str.strip, row)):  # not the blank lines that editors leave
                    yield line, row, minutes
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file") from None
    except csv.Error as error:
        raise TraceError(f"{path}, after line {line}: not CSV ({error})") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error})") from None


def _read_file(
    path: Path, choice: Choice, kept: Mapping[Function, int] | None = None
) -> InvocationCounts:
    functions: list[Function] = []
    rows: list[npt.NDArray[np.int32]] = []
    is_empty = True
    minutes: list[int] = []
    for line, row, minutes in _rows_of(path):
        counts = _counts(row, len(minutes), f"{path}, line {line}")
        function = tuple(row[: len(COLUMNS)])
        is_empty = False
        if choice.accepts(function) and (kept is None or function in kept):
            functions.append(function)
            rows.append(counts)
    if is_empty:
        raise TraceError(f"{path}: holds no functions; expected one row per function")
    counts = np.stack(rows) if rows else np.empty((0, len(minutes)), dtype=np.int32)
    return InvocationCounts(
        functions=tuple(functions),
        counts=counts,
        first_minute=minutes[0],
        source=path.name,
        files=(path.name,),
    )


def _check_found(num_found: int, path: Path, choice: Choice) -> None:
    if num_found:
        return
    asked = " ".join(part for part in (choice.trigger, choice.function) if part)
    triggers = sorted({row[3] for _, row, _ in _rows_of(path)})
    raise TraceError(f"{path}: no function fits {asked}; the triggers are {', '.join(triggers)}")


def _chosen_over_days(files: Sequence[Path], choice: Choice) -> dict[Function, int]:
    totals: dict[Function, int] = defaultdict(int)
    for file in files:
        day = _read_file(file, choice)
        for function, count in zip(day.functions, day.per_function.tolist(), strict=True):
            totals[function] += count
    _check_found(len(totals), files[0], choice)
    functions = list(totals)
    rows = _ranked(np.array(list(totals.values()), dtype=np.int64), choice)
    return {functions[i]: totals[functions[i]] for i in rows}


def _ranked(totals: IntArray, choice: Choice) -> list[int]:
    """Return the rows that `top` or `share` keeps, in the order of the file."""
    order = np.argsort(-totals, kind="stable")
    if choice.top is not None and choice.share is not None:
        raise TraceError("give top or share, not both")
    if choice.top is not None:
        if not 1 <= choice.top <= totals.size:
            raise TraceError(
                f"top must be 1 to {totals.size} (the functions to choose from), got {choice.top}"
            )
        return np.sort(order[: choice.top]).tolist()
    share = choice.share or 0.0
    if not 0 < share <= 1:
        raise TraceError(f"share is a fraction above 0 and at most 1, got {share:g}")
    reached = np.cumsum(totals[order])
    count = int(np.searchsorted(reached, share * reached[-1] * (1 - 1e-12))) + 1
    return np.sort(order[:count]).tolist()


def _joined(days: Sequence[InvocationCounts], source: str) -> InvocationCounts:
    """Lay days behind each other; a function's row is the same on every day."""
    rows = {f: i for i, f in enumerate(dict.fromkeys(f for day in days for f in day.functions))}
    minutes = [day.counts.shape[1] for day in days]
    counts = np.zeros((len(rows), sum(minutes)), dtype=days[0].counts.dtype)
    start = 0
    for day, length in zip(days, minutes, strict=True):
        places = [rows[f] for f in day.functions]
        np.add.at(counts[:, start : start + length], places, day.counts)
        start += length
    return InvocationCounts(
        functions=tuple(rows),
        counts=counts,
        first_minute=days[0].first_minute,
        source=source,
        files=tuple(name for day in days for name in day.files),
    )


def _minutes(header: Sequence[str], where: str) -> list[int]:
    """Return the numbers of the minute columns: at least one, consecutive."""
    header = [name.strip() for name in header]
    while header and not header[-1]:  # a comma at the end of the line
        header.pop()
    names, minutes = tuple(header[: len(COLUMNS)]), header[len(COLUMNS) :]
    if names == COLUMNS and minutes and all(m.isascii() and m.isdigit() for m in minutes):
        numbers = [int(m) for m in minutes]
        if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            return numbers
    raise TraceError(
        f"{where}: header {','.join(header)[:80]!r} is not that of a counts file; expected "
        f"{','.join(COLUMNS)}, then consecutive minute numbers"
    )


def _counts(row: Sequence[str], num_minutes: int, where: str) -> npt.NDArray[np.int32]:
    wanted = len(COLUMNS) + num_minutes
    while len(row) > wanted and not row[-1].strip():
        row = row[:-1]
    if len(row) != wanted:
        raise TraceError(
            f"{where}: {len(row)} columns, expected {wanted} "
            f"({len(COLUMNS)} names and {num_minutes} minutes)"
        )
    texts = [text.strip() for text in row[len(COLUMNS) :]]
    joined = "".join(texts)
    if not (joined.isascii() and joined.isdigit() and all(texts)) or max(map(len, texts)) > 9:
        column, text = next(
            (i, t) for i, t in enumerate(texts, start=len(COLUMNS) + 1) if not _is_count(t)
        )
        raise TraceError(
            f"{where}, column {column}: {text[:40]!r} is not a count; expected a whole number of "
            "at most 9 digits"
        )
    return np.array(texts, dtype=np.int32)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9
