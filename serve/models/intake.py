"""`Intake`: what a door has read and not yet worked on, while more comes than it has time for.

The door has one thread, and a turn of its event loop hands over all that has come. If each request
is worked on at once the turn takes as long as all of them do; meanwhile nobody knows how long what
comes next has waited, no answer is sent, and the device is given nothing. So a turn works for
`SLICE_S`. What it reads beyond that is kept here: that takes a few microseconds, and from then on
its wait is known.

As a rule the order is that of arrival, and only what is lost is refused. A burst is over soon. A
queue that has stood for `STANDING_S`, and in which somebody has waited for half of their time, is
no burst: it grows until as many are lost as come too many, and whoever is served from its oldest
end has next to no time left for the device. Until it is empty it is then served from its newest
end, and who has waited for half of their time is refused, with the other half left to ask
elsewhere. (Nichols and Jacobson, Controlling Queue Delay, 2012, tell a standing queue from a burst;
Maurer, Fail at Scale, 2015, serves the newest first.)
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

SLICE_S = 0.005
LEAST_SLICE_S = 0.001  # however short the time that somebody gives
STANDING_S = 0.1
_REMEMBERED = 16  # of those who waited too long: how many the average goes back
MOST_WAIT = 0.5  # of the time given, in a queue that stands


class Keeper(Protocol):
    """A connection that has read something, and works on it when it is its turn."""

    def take_kept(self) -> None: ...


class Intake:
    """The queue of one event loop: `clock` is the one that waits are measured with."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: deque[tuple[float, Keeper]] = deque()  # when it came, to whom; oldest first
        self._until_s: float | None = None  # the end of this turn's slice, once it has begun
        self._since_s = 0.0  # when the queue was empty last
        self._is_standing = False
        self._patience_s = math.inf  # half of the time that those gave who waited as long, averaged

    def has_time(self, now_s: float) -> bool:
        """Whether what was read at `now_s` may be worked on at once, in this turn of the loop."""
        if self._kept:
            return False
        if self._until_s is None:
            self._begin_slice(now_s)
            return True
        return now_s < self._until_s

    def keep(self, keeper: Keeper, came_s: float) -> None:
        """Have `take_kept` called in a later turn, since this one has no time."""
        if not self._kept:
            self._since_s = self._clock()
        self._kept.append((came_s, keeper))

    def is_overdue(self, waited_s: float, given_s: float) -> bool:
        """Return whether a request has waited too long, of the time given, for a standing queue."""
        most_s = MOST_WAIT * given_s
        if waited_s < most_s:
            return False
        if self._kept:
            self._learn(most_s)
        return self._is_standing

    def _learn(self, most_s: float) -> None:
        """Follow what those who wait too long give; one in a hurry is no measure for all."""
        if self._patience_s == math.inf:
            self._patience_s = most_s
        else:
            self._patience_s += (most_s - self._patience_s) / _REMEMBERED

    def _begin_slice(self, now_s: float) -> None:
        self._until_s = now_s + self._slice_s()
        asyncio.get_running_loop().call_soon(self._turn)

    def _slice_s(self) -> float:
        """Several turns, each of several slices, pass until an answer is sent."""
        return max(LEAST_SLICE_S, min(SLICE_S, self._patience_s / 20))

    def _turn(self) -> None:
        """Work on what is kept; the loop calls this in each of its turns before it reads more."""
        self._until_s = None
        if not self._kept:
            self._is_standing, self._patience_s = False, math.inf
            return
        now_s = self._clock()
        self._begin_slice(now_s)
        if self._patience_s < math.inf and now_s - self._since_s > STANDING_S:
            self._is_standing = True
        if self._is_standing:
            self._take(self._kept.pop, self._slice_s())
            self._take(self._kept.popleft, 2 * self._slice_s(), min_age_s=self._patience_s)
        else:
            self._take(self._kept.popleft, self._slice_s())

    def _take(
        self, pop: Callable[[], tuple[float, Keeper]], for_s: float, min_age_s: float = 0.0
    ) -> None:
        """Work on what is kept, for so long; `min_age_s` is that of the oldest."""
        now_s = self._clock()
        until_s = now_s + for_s
        while self._kept and now_s < until_s and now_s - self._kept[0][0] >= min_age_s:
            pop()[1].take_kept()
            now_s = self._clock()
