"""The earliest answer that a device can promise: what a refusal tells its client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from slackfit.profile import LatencyProfile


class EarliestAnswer(NamedTuple):
    """Seconds from now until an answer, at the earliest.

    `finish_s` behind all that waits and runs, `idle_finish_s` on an idle device.
    """

    finish_s: float
    idle_finish_s: float


class AnswerPredictor:
    """Predicts on the fastest subnet for each batch size; asks a profile only when it changes."""

    def __init__(self) -> None:
        self._profile: LatencyProfile | None = None
        self._fastest_s: Sequence[float] = ()  # [b - 1]: the shortest batch of b

    def predict(self, profile: LatencyProfile, num_queued: int, busy_s: float) -> EarliestAnswer:
        """Predict for a query behind `num_queued` others and a batch with `busy_s` to go."""
        if profile is not self._profile:
            rows = [row[1:] for row in profile.table().values()]
            self._profile, self._fastest_s = profile, [min(row) for row in zip(*rows, strict=True)]
        full, rest = divmod(num_queued, len(self._fastest_s))
        queue_s = full * self._fastest_s[-1] + self._fastest_s[rest]
        return EarliestAnswer(max(0.0, busy_s) + queue_s, self._fastest_s[0])
