"""The daily counts files of a folder: in the order of their days, each day once.

Names are sorted by the numbers in them (d2 before d10). A day that is there plain and compressed is
read once; a day of which there are two different files, such as a browser's second download, and
files of no known day among those of days, are refused rather than counted twice.
"""

from __future__ import annotations

import re
from pathlib import Path

from traces.trace import TraceError

_SUFFIXES = (".csv", ".csv.gz")
_DAY = re.compile(r"[._-]d(?:ay)?(\d+)(?=\D|$)(?:.*min(\d+))?")  # a sample may be a part of a day


def daily_files(path: Path) -> list[Path]:
    """Return the file itself, or a folder's counts files in the order of their days.

    Raises:
        TraceError: the folder has none, or two of one day.
    """
    if not path.is_dir():
        return [path]
    found = sorted(
        (file for file in path.iterdir() if _is_counts(file)), key=lambda file: _numbers(file.name)
    )
    if not found:
        raise TraceError(
            f"{path}: holds no invocations*.csv or .csv.gz; give a counts file or a folder of them"
        )
    once: dict[str, Path] = {}
    for file in found:
        once.setdefault(file.name.lower().removesuffix(".gz"), file)  # the plain one comes first
    days: dict[tuple[int, int] | None, Path] = {}
    for file in once.values():
        day = _DAY.search(file.name)
        number = (int(day[1]), int(day[2] or 0)) if day else None
        if number is not None and number in days:
            raise TraceError(
                f"{path}: day {number[0]} is there twice, {days[number].name} and {file.name}; "
                "leave one of them in the folder"
            )
        days[number] = file
    if None in days and len(days) > 1:
        raise TraceError(
            f"{path}: the day of {days[None].name} is not known (the others are named like "
            f"{next(f.name for d, f in days.items() if d is not None)}), so neither is its place; "
            "rename it, or take it out of the folder"
        )
    return list(once.values())


def _is_counts(file: Path) -> bool:
    return (
        file.name.startswith("invocations")
        and file.name.lower().endswith(_SUFFIXES)
        and file.is_file()
    )


def _numbers(name: str) -> list[tuple[int, int | str]]:
    """Return a name as its texts and numbers, so that 2 comes before 10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]
