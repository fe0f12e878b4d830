"""`OutcomeColumns`: the outcomes of one run as arrays, one per field.

What a list of `Outcome` is, for runs of millions of queries: ten times smaller, and counted at
once. `outcomes()` makes that list of it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from slackfit.query import STATUSES, Outcome

REASONS = ("", "expired", "infeasible", "cancelled", "worker failed")
"""Reasons that a simulated query may have, by number."""

ON_TIME, LATE, DROPPED, REJECTED, FAILED = range(len(STATUSES))
EXPIRED, INFEASIBLE, CANCELLED, WORKER_FAILED = range(1, len(REASONS))


class OutcomeColumns(NamedTuple):
    """Row i is query i: numbers of `STATUSES`, `REASONS` and `subnet_ids`, seconds, counts.

    `start_s` is NaN and `subnet` and `worker` are -1 for a query that never ran. All have the
    length of the trace but `subnet_ids` and `accuracies` (fractions), which have one entry per
    subnet, in ascending order of accuracy.
    """

    status: npt.NDArray[np.int8]
    reason: npt.NDArray[np.int8]
    arrival_s: npt.NDArray[np.float64]
    deadline_s: npt.NDArray[np.float64]
    start_s: npt.NDArray[np.float64]
    finish_s: npt.NDArray[np.float64]
    subnet: npt.NDArray[np.int16]
    batch_size: npt.NDArray[np.int32]
    worker: npt.NDArray[np.int32]
    subnet_ids: tuple[str, ...]
    accuracies: tuple[float, ...]

    @property
    def num_queries(self) -> int:
        """How many queries arrived."""
        return len(self.status)

    @property
    def attainment(self) -> float:
        """On-time queries / all queries, 0 of none."""
        return int(np.count_nonzero(self.status == ON_TIME)) / max(self.num_queries, 1)

    @property
    def mean_accuracy(self) -> float:
        """Mean profiled accuracy over on-time queries, 0 of none."""
        on_time = self.subnet[self.status == ON_TIME]
        counts = np.bincount(on_time, minlength=len(self.accuracies)).tolist()
        served = math.fsum(n * a for n, a in zip(counts, self.accuracies, strict=True))
        return served / len(on_time) if len(on_time) else 0.0

    def outcomes(self) -> list[Outcome]:
        """Return the same as a list of `Outcome`."""
        executed = (self.status == ON_TIME) | (self.status == LATE)
        accuracies = np.array([*self.accuracies, 0.0])[np.where(executed, self.subnet, -1)]
        never_ran = np.isnan(self.start_s)
        columns = zip(
            range(self.num_queries),
            np.array(STATUSES, dtype=object)[self.status],
            np.array(REASONS, dtype=object)[self.reason],
            self.arrival_s.tolist(),
            self.deadline_s.tolist(),
            _with_none(self.start_s, never_ran),
            self.finish_s.tolist(),
            np.array([*self.subnet_ids, None], dtype=object)[self.subnet],
            accuracies.tolist(),
            self.batch_size.tolist(),
            _with_none(self.worker, self.worker < 0),
            (1,) * self.num_queries,
            strict=True,
        )
        return list(map(Outcome._make, columns))


def _with_none(
    values: npt.NDArray[np.float64] | npt.NDArray[np.int32], where: npt.NDArray[np.bool_]
) -> list[float | int | None]:
    """Return the values as Python's, None where `where` says so."""
    found = values.astype(object)
    found[where] = None
    return found.tolist()
