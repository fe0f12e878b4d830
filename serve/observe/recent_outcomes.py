"""`RecentOutcomes`: attainment and served accuracy of the last seconds, as a dial shows them."""

from __future__ import annotations

import math
from collections import deque

from slackfit.query import Outcome

WINDOW_S = 10


class RecentOutcomes:
    """Sums over the queries that ended in the last `window_s` whole seconds; one thread."""

    def __init__(self, window_s: int = WINDOW_S) -> None:
        self._window_s = window_s
        self._seconds: deque[_Second] = deque()

    def observe(self, outcome: Outcome) -> None:
        """Count the end of one query, at the second of its end, as many as it has samples."""
        second = math.floor(outcome.finish_s)
        if not self._seconds or self._seconds[-1].second < second:
            self._seconds.append(_Second(second))
            self._forget(second)
        current = self._seconds[-1]  # one that ended a moment earlier counts here as well
        current.ended += outcome.samples
        if outcome.status == "on_time":
            current.on_time += outcome.samples
            current.accuracy += outcome.accuracy * outcome.samples

    def attainment(self, now_s: float) -> float:
        """Return the share of the ended queries that was on time; NaN where none ended."""
        self._forget(math.floor(now_s))
        return _ratio(self._total("on_time"), self._total("ended"))

    def accuracy(self, now_s: float) -> float:
        """Return the mean profiled accuracy of the queries on time, a fraction; NaN for none."""
        self._forget(math.floor(now_s))
        return _ratio(self._total("accuracy"), self._total("on_time"))

    def _forget(self, second: int) -> None:
        while self._seconds and self._seconds[0].second <= second - self._window_s:
            self._seconds.popleft()

    def _total(self, field: str) -> float:
        return sum(getattr(second, field) for second in self._seconds)


class _Second:
    __slots__ = ("accuracy", "ended", "on_time", "second")

    def __init__(self, second: int) -> None:
        self.second = second
        self.ended = 0
        self.on_time = 0
        self.accuracy = 0.0


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
