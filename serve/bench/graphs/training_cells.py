"""`TrainingCells`: trainings of one part, each kept in the journal when it is done.

Says before each one how many there are, how many are done and about how long the rest takes, judged
by those of this run on the same graph and of the same kind. Keeps the processor time of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from serve.bench.journal import Journal
from serve.bench.rows import Row, Tell, row


class TrainingCells:
    """Cells by names `part/.../seed`, those of one part known beforehand."""

    def __init__(self, journal: Journal, names: Sequence[str], tell: Tell):
        self._journal, self._tell = journal, tell
        self._names = tuple(dict.fromkeys(names))
        self._seconds: dict[str, list[float]] = {}

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return a cell, measuring it if it is not there yet."""
        if name not in self._journal:
            self.say(name)
            start_s, core_start_s = time.monotonic(), time.process_time()
            made = measure()
            core_s = round(time.process_time() - core_start_s, 2)
            self._journal.once(_core(name), lambda: core_s)
            self._journal.once(name, lambda: made)
            self._seconds.setdefault(_kind(name), []).append(time.monotonic() - start_s)
        return self._journal.get(name)

    def say(self, name: str) -> None:
        """Tell which cell is begun, how far the part is, and how long the rest takes."""
        done = len(self._names) - len(self._missing())
        left_s = self.left_s()
        rest = "" if left_s is None else f", about {_duration(left_s)} left"
        self._tell(f"{name.replace('/', ' ')} ({done} of {len(self._names)} done{rest})")

    def left_s(self) -> float | None:
        """Return about how long the missing cells take; None before one of this run is done."""
        if not self._seconds:
            return None
        anything_s = float(np.mean([s for found in self._seconds.values() for s in found]))
        known_s = {kind: float(np.mean(found)) for kind, found in self._seconds.items()}
        return sum(known_s.get(_kind(name), anything_s) for name in self._missing())

    def core_time(self, figure: str) -> Row:
        """Return the processor time of the cells that are there, those of earlier runs too."""
        names = [_core(name) for name in self._names if _core(name) in self._journal]
        hours = sum(self._journal.get(name) for name in names) / 3600
        return row(figure, hours, "core hours", {"trainings": len(names)}, digits=4)

    def _missing(self) -> list[str]:
        return [name for name in self._names if name not in self._journal]


def _kind(name: str) -> str:
    return name.rpartition("/")[0]


def _core(name: str) -> str:
    return f"core_s/{name}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
