"""`PublicCounts`: what those outside may read of how many were served, counted as answers leave.

A count that rose when a batch ended would tell the moment to who reads it all the time, and with it
the subnet, however long the answer then waits for the grid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from serve.observe.tallies import TallyCounter

RELEASED = "supernet_released_samples"


class PublicCounts:
    """Samples of one model that were answered, and that were refused; used by one thread.

    `released` has the labels model and status.
    """

    def __init__(self, model: str, released: TallyCounter, unix_clock: Callable[[], float]) -> None:
        self._model = model
        self._answered = released.labels(model, "answered")
        self._refused = released.labels(model, "refused")
        self._unix_clock = unix_clock
        self._last_unix_s = 0

    def answered(self, samples: int) -> None:
        """Count an answer that leaves now."""
        self._answered.inc(samples)
        self._last_unix_s = int(self._unix_clock())

    def refused(self, samples: int) -> None:
        """Count a refusal that leaves now."""
        self._refused.inc(samples)

    def rows(self, name: str, version: str | None = None) -> list[dict[str, Any]]:
        """Return the protocol's statistics as one row of counts, without a time of any kind."""
        answered, refused = round(self._answered.value), round(self._refused.value)
        nothing = {"count": 0, "ns": 0}
        kinds = ("queue", "compute_input", "compute_infer", "compute_output")
        return [
            {
                "name": name,
                "version": version or "",
                "last_inference": self._last_unix_s * 1000,
                "inference_count": answered,
                "execution_count": 0,
                "inference_stats": {
                    "success": {"count": answered, "ns": 0},
                    "fail": {"count": refused, "ns": 0},
                    **{kind: dict(nothing) for kind in kinds},
                },
                "batch_stats": [],
            }
        ]
