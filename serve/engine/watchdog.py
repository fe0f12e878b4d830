"""`Watchdog`: says when a batch runs for so long that the device must be taken to hang.

A device that hangs cannot be interrupted from Python. What can be done is to tell every client at
once, to take no more queries, and to fail the health check, so that the replica is replaced.
"""

from __future__ import annotations

_FACTOR = 50.0  # times the predicted latency: far beyond any contention that was measured


class Watchdog:
    """Follows one device; `hung_after_s` is the least time that a batch is given."""

    def __init__(self, hung_after_s: float) -> None:
        self.hung_after_s = hung_after_s
        self._hung_at_s: float | None = None

    def launched(self, now_s: float, expected_latency_s: float) -> None:
        """Note that a batch runs from now on."""
        self._hung_at_s = now_s + max(self.hung_after_s, _FACTOR * expected_latency_s)

    def returned(self) -> None:
        """Note that nothing runs any more."""
        self._hung_at_s = None

    def is_hung(self, now_s: float) -> bool:
        """Return whether the batch that runs should have ended long ago."""
        return self._hung_at_s is not None and now_s >= self._hung_at_s
