"""How queries end, as numbers: places in `STATUSES` and in `REASONS`, which machine code writes."""

from __future__ import annotations

from slackfit.query import STATUSES

REASONS = ("", "expired", "infeasible", "cancelled", "worker failed")
"""Reasons that a simulated query may have, by number."""

ON_TIME, LATE, DROPPED, REJECTED, FAILED = range(len(STATUSES))
EXPIRED, INFEASIBLE, CANCELLED, WORKER_FAILED = range(1, len(REASONS))
