"""The fluidity index: in which share of its periods a stream's reader was not kept waiting.

Metron (arXiv 2407.07000; as Etalon's code counts, of which its documentation says something else).
Output i is due at `first_due + i * period`: what comes early is banked, since a reader has it to
read. A late output misses every period that went by empty, so a long stall counts several times,
and the deadlines start again from it. For video they do not (`restarts=False`): frame i is due at
its own time whatever came before, and a frame that never came is missed.

Two times closer than a nanosecond are one, or an exact multiple of the period would flip by one
miss with the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_NANOSECOND = 1e-9


@dataclass(frozen=True, slots=True)
class Fluidity:
    """`missed` of `due` periods; `quality` is summed over the outputs that came in time."""

    missed: int
    due: int
    quality: float = 0.0

    @property
    def index(self) -> float:
        """The share of periods not missed; 0 of nothing."""
        return 1.0 - self.missed / self.due if self.due else 0.0

    @property
    def weighted_index(self) -> float:
        """The mean over periods of the quality of what came in time, 0 where nothing did."""
        return self.quality / self.due if self.due else 0.0


class FluidityCount:
    """Counts a stream's periods as its outputs come; `due_s` is when the next one is due."""

    __slots__ = ("due", "due_s", "missed", "period_s", "quality", "restarts")

    def __init__(self, first_due_s: float, period_s: float, *, restarts: bool = True) -> None:
        """Begin before the first output. Raises ValueError unless `period_s` is above 0."""
        if not period_s > 0.0:
            raise ValueError(f"period_s is {period_s}, allowed more than 0")
        self.due_s = first_due_s
        self.period_s = period_s
        self.restarts = restarts
        self.missed = 0
        self.due = 0
        self.quality = 0.0

    def note(self, output_s: float, quality: float = 1.0) -> None:
        """Count an output that came at `output_s`; outputs come in order."""
        late_s = output_s - self.due_s
        if late_s <= _NANOSECOND:
            self.due += 1
            self.quality += quality
            self.due_s += self.period_s
            return
        missed = periods_missed(late_s, self.period_s) if self.restarts else 1
        self.missed += missed
        self.due += missed
        self.due_s = (output_s if self.restarts else self.due_s) + self.period_s

    def skip(self, count: int = 1) -> None:
        """Count outputs that never came, such as frames that were dropped."""
        self.missed += count
        self.due += count
        self.due_s += count * self.period_s

    @property
    def result(self) -> Fluidity:
        """What was counted so far."""
        return Fluidity(self.missed, self.due, self.quality)


def periods_missed(late_s: float, period_s: float) -> int:
    """Return how many periods an output misses that comes `late_s` (above 0) after it was due.

    >>> periods_missed(0.35, 0.1), periods_missed(0.2, 0.1), periods_missed(0.05, 0.1)
    (4, 3, 1)
    """
    return math.floor((late_s + _NANOSECOND) / period_s) + 1


def fluidity(
    output_s: Sequence[float],
    first_due_s: float,
    period_s: float,
    *,
    qualities: Sequence[float] | None = None,
) -> Fluidity:
    """Return the fluidity of a stream whose outputs came at `output_s`, in order.

    `first_due_s` is on the same clock. Raises ValueError for a period of 0 or less, or qualities
    of another number.

    >>> fluidity([0.5, 0.6, 0.75], 0.5, 0.1)
    Fluidity(missed=1, due=3, quality=2.0)
    """
    count = FluidityCount(first_due_s, period_s)
    for at_s, quality in zip(output_s, _all(qualities, len(output_s)), strict=True):
        count.note(at_s, quality)
    return count.result


def video_fluidity(
    output_s: Sequence[float | None],
    first_due_s: float,
    period_s: float,
    *,
    qualities: Sequence[float] | None = None,
) -> Fluidity:
    """Return the fluidity of frames with absolute deadlines; None is a frame that never came.

    Frame i is due at `first_due_s + i * period_s` whatever came before, and late or dropped
    it is one period missed. Raises ValueError as `fluidity`.

    >>> video_fluidity([0.0, 0.15, None, 0.3], 0.0, 0.1).missed
    2
    """
    count = FluidityCount(first_due_s, period_s, restarts=False)
    for at_s, quality in zip(output_s, _all(qualities, len(output_s)), strict=True):
        if at_s is None:
            count.skip()
        else:
            count.note(at_s, quality)
    return count.result


class StreamTimeline(NamedTuple):
    """When a stream's outputs came, and when the first was due, on one clock (s)."""

    first_due_s: float
    output_s: Sequence[float]


def fluid_token_rate(
    timelines: Sequence[StreamTimeline],
    *,
    share: float = 0.99,
    least: float = 0.9,
    precision: float = 1e-3,
    longest_s: float = 1e6,
) -> float:
    """Return the outputs per second at which `share` of the streams have an index of `least`.

    That is 1 / the shortest such period, found by bisection to a relative `precision`: no index
    falls when the period grows. 0 where no period up to `longest_s` will do (a first output was
    late by more than all periods mend, say, or there is no stream).
    """

    def will_do(period_s: float) -> bool:
        good = sum(fluidity(t.output_s, t.first_due_s, period_s).index >= least for t in timelines)
        return bool(timelines) and good >= share * len(timelines)

    longest = _bisect(will_do, longest_s, precision)
    return 0.0 if longest is None else 1.0 / longest


def _bisect(will_do: Callable[[float], bool], longest_s: float, precision: float) -> float | None:
    """Return the shortest period that will do, None if `longest_s` will not."""
    if not will_do(longest_s):
        return None
    low_s, high_s = _NANOSECOND, longest_s
    while high_s > low_s * (1.0 + precision):
        middle_s = math.sqrt(low_s * high_s)  # periods differ by orders of magnitude
        low_s, high_s = (low_s, middle_s) if will_do(middle_s) else (middle_s, high_s)
    return high_s


def _all(qualities: Sequence[float] | None, count: int) -> Iterable[float]:
    if qualities is None:
        return (1.0,) * count
    if len(qualities) != count:
        raise ValueError(f"{len(qualities)} qualities for {count} outputs; give one each")
    return qualities
