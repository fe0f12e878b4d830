"""The earliest answer that a device can promise: what a refusal tells its client."""

from __future__ import annotations

from typing import NamedTuple

from slackfit.profile import LatencyProfile


class EarliestAnswer(NamedTuple):
    """Seconds from now until an answer, at the earliest.

    `finish_s` behind all that waits and runs, `idle_finish_s` on an idle device.
    """

    finish_s: float
    idle_finish_s: float


def earliest_answer(profile: LatencyProfile, num_queued: int, busy_s: float) -> EarliestAnswer:
    """Predict for a query behind `num_queued` others and a batch with `busy_s` to go."""
    fastest = profile.fastest()
    queue_s = fastest.duration_s(num_queued + 1)
    return EarliestAnswer(max(0.0, busy_s) + queue_s, fastest.latency_s[1])
