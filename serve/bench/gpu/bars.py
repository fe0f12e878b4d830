"""`Bar`, what a figure of `serve.bench.gpu` must reach, and the comparison of a result with them.

The bars stand in one place, a table of docs/actuation.md, set before the first run on a device. The
comparison goes row by row: it holds, it is missed, or it is absent and says why. A figure that was
measured with a CPU in the device's place is no figure of a device.
"""

from __future__ import annotations

import json
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

from serve.bench.rows import Row

BARS_PAGE = Path(__file__).parents[3] / "docs" / "actuation.md"
_HEADER = ("rows", "bar", "of", "on", "because")
_COMPARE: dict[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge}
_TAKEN = ("each", "median")
_ON = ("any", "CPU", "GPU")
_BAR = re.compile(r"(<=|>=) (-?\d+(?:\.\d+)?)")

State = Literal["holds", "missed", "absent"]


class BarError(ValueError):
    """A table of bars, or a file of rows, can't be read; the message says what was found."""


class Bar(NamedTuple):
    """Rows by a shell pattern of their names, and what each, or their median, must be.

    `on`: judged are rows that a GPU gave, rows of a CPU (a stand-in of known times), or any.
    """

    rows: str
    sign: str
    limit: float
    of: str
    on: str
    because: str

    def holds(self, value: float) -> bool:
        """Whether a value reaches the bar."""
        return _COMPARE[self.sign](value, self.limit)

    def judges(self, row: Row) -> bool:
        """Whether it was measured where the bar counts."""
        return self.on in ("any", "GPU" if is_of_device(row) else "CPU")


class Verdict(NamedTuple):
    """What became of one figure."""

    state: State
    figure: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:6}  {self.figure}: {self.text}"


def is_of_device(row: Row) -> bool:
    """Whether a CUDA device gave this row: then it names the device's driver."""
    return bool(row.get("driver"))


def compare(rows: Iterable[Row], bars: Iterable[Bar]) -> list[Verdict]:
    """Return a verdict for every row that a bar judges, and one for a bar without any.

    Raises BarError for a figure that is there twice.
    """
    kept = list(rows)
    by_name = {str(row["figure"]): row for row in kept}
    twice = [name for name, count in Counter(row["figure"] for row in kept).items() if count > 1]
    if twice:
        raise BarError(f"figures are there more than once: {', '.join(sorted(twice)[:5])}")
    return [verdict for bar in bars for verdict in _of_bar(by_name, bar)]


def summary(verdicts: Sequence[Verdict]) -> str:
    """Return a line per verdict, what is missed last, and the counts."""
    order: tuple[State, ...] = ("absent", "holds", "missed")
    lines = [str(v) for state in order for v in verdicts if v.state == state]
    counts = Counter(verdict.state for verdict in verdicts)
    told = f"{counts['holds']} hold, {counts['missed']} missed, {counts['absent']} absent"
    return "\n".join((*lines, f"bars: {told}"))


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a result file. Raises BarError for anything else."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BarError(f"{path}: not a file of rows ({error})") from None
    if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
        raise BarError(f"{path}: expected a list of rows of figure, value, unit and detail")
    return rows


def read_bars(page: Path | None = None) -> list[Bar]:
    """Return the bars of docs/actuation.md, or of another page with such a table.

    Raises BarError for a page that is not there (an installation without docs/), or a bad table.
    """
    page = page or BARS_PAGE
    try:
        lines = page.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BarError(
            f"{page}: no bars to compare with ({error}); run this in a checkout of the repository"
        ) from None
    tables = [n for n, line in enumerate(lines) if _cells(line) == _HEADER]
    if len(tables) != 1:
        raise BarError(
            f"{page}: {len(tables)} tables with the columns {', '.join(_HEADER)}, expected one"
        )
    bars: list[Bar] = []
    for number, line in enumerate(lines[tables[0] + 2 :], start=tables[0] + 3):
        if not line.startswith("|"):
            break
        bars += _bars_of(f"{page}, line {number}", _cells(line))
    return bars


def _bars_of(where: str, cells: tuple[str, ...]) -> list[Bar]:
    """Return the bars of a line: one for each of its patterns."""
    if len(cells) != len(_HEADER):
        raise BarError(f"{where}: {len(cells)} columns, expected {len(_HEADER)}")
    names, bar, of, on, because = cells
    patterns = re.findall(r"`([^`]+)`", names)
    found = _BAR.fullmatch(bar.strip("`"))
    if not patterns or not found:
        raise BarError(
            f"{where}: expected `names of rows` and a bar like <= 1.05, got {names!r} and {bar!r}"
        )
    if of not in _TAKEN or on not in _ON:
        raise BarError(
            f"{where}: of is {of!r}, allowed {', '.join(_TAKEN)}; on is {on!r}, allowed "
            f"{', '.join(_ON)}"
        )
    return [Bar(name, found[1], float(found[2]), of, on, because) for name in patterns]


def _of_bar(rows: Mapping[str, Row], bar: Bar) -> list[Verdict]:
    named = {name: row for name, row in rows.items() if fnmatchcase(name, bar.rows)}
    if not named:
        return [Verdict("absent", bar.rows, "no such row")]
    verdicts = [
        Verdict("absent", name, _why_not(row, bar))
        for name, row in named.items()
        if row["value"] is None or not bar.judges(row)
    ]
    judged = {
        name: float(row["value"])
        for name, row in named.items()
        if row["value"] is not None and bar.judges(row)
    }
    if bar.of == "median" and judged:
        verdicts.append(
            _verdict(bar, bar.rows, median(judged.values()), f"median of {len(judged)}")
        )
    elif bar.of == "each":
        verdicts += [_verdict(bar, name, value, bar.because) for name, value in judged.items()]
    return verdicts


def _verdict(bar: Bar, figure: str, value: float, note: str) -> Verdict:
    state: State = "holds" if bar.holds(value) else "missed"
    return Verdict(state, figure, f"{value:.6g}, bar {bar.sign} {bar.limit:g} ({note})")


def _why_not(row: Row, bar: Bar) -> str:
    if row["value"] is None:
        return str(row["detail"])
    return f"measured on a {'GPU' if is_of_device(row) else 'CPU'}, the bar is for a {bar.on}"


def _is_row(row: object) -> bool:
    if not isinstance(row, dict) or not {"figure", "value", "unit", "detail"} <= set(row):
        return False
    return row["value"] is None or isinstance(row["value"], (int, float))


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip().strip("|").split("|"))
