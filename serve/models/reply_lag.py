"""`ReplyLag`: what an answer waits between the end of its batch and the door that sends it.

The door has one thread. When a batch of sixteen ends, sixteen answers are written one after the
other, between requests that arrive; the last of them leaves some milliseconds after the device had
it. A deadline is the client's, so that time must be left.

The 0.95 quantile is followed by stochastic approximation (Robbins and Monro, 1951), as the
scheduler follows the device's. O(1) per answer, no history.
"""

from __future__ import annotations

_QUANTILE = 0.95
_STEP_S = 0.0005
_MOST_S = 0.1


class ReplyLag:
    """Learns from every answer; begins at 0."""

    def __init__(self) -> None:
        self._lag_s = 0.0

    @property
    def lag_s(self) -> float:
        """What nineteen of twenty answers do not exceed, as learned so far."""
        return self._lag_s

    def observe(self, lag_s: float) -> None:
        """Take in what one answer waited."""
        step_s = _STEP_S * (_QUANTILE if lag_s > self._lag_s else _QUANTILE - 1.0)
        self._lag_s = max(0.0, min(_MOST_S, self._lag_s + step_s))
