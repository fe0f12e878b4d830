"""`RecentRefusals`: what is told to those who are refused unread, the same for some milliseconds.

Beyond what a door carries most of what comes is refused, for the same reason and with the same
outlook. To ask the engine each time takes its lock from the device's thread, thousands of times a
second.
"""

from __future__ import annotations

from collections.abc import Callable

from serve.engine.served_engine import EarliestAnswer
from serve.models.limits import RefusedError, refusal_of
from slackfit.query import Outcome

KEPT_S = 0.002
"""How long an outlook is told; it says when an answer could come, and is of a busy device."""


class RecentRefusals:
    """Refusals by their reason and whether to try again may help; for one thread."""

    def __init__(self, clock: Callable[[], float], ask: Callable[[], EarliestAnswer]) -> None:
        """`ask` predicts the earliest answer."""
        self._clock, self._ask = clock, ask
        self._earliest: EarliestAnswer | None = None
        self._until_s = 0.0
        self._made: dict[tuple[str, bool], RefusedError] = {}

    def of(self, outcome: Outcome) -> RefusedError:
        """Return the refusal of a request that wished for no subnet in particular.

        It is the same object for all that are alike; raise it without its traceback.
        """
        now_s = self._clock()
        if self._earliest is None or now_s > self._until_s:
            self._earliest, self._until_s = self._ask(), now_s + KEPT_S
            self._made.clear()
        given_s = outcome.deadline_s - outcome.arrival_s
        alike = (outcome.reason, given_s > self._earliest.idle_finish_s)
        if alike not in self._made:
            self._made[alike] = refusal_of(outcome, self._earliest)
        return self._made[alike]
