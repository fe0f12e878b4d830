"""Which waiting queries will be late whatever is done: the backlog on the fastest subnet.

The most that a device can do is to run the largest batches on its fastest subnet, earliest deadline
first. A query that is late even so is hopeless; those behind it are judged without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from slackfit.profile import LatencyProfile
from slackfit.query import Query


class Backlog:
    """Judges backlogs by one profile; makes its table once."""

    def __init__(self, profile: LatencyProfile) -> None:
        self.profile = profile
        rows = [row[1:] for row in profile.table().values()]
        self._fastest_s = [0.0, *(min(row) for row in zip(*rows, strict=True))]  # by batch size
        sizes = range(1, len(self._fastest_s))
        self._best = min(sizes, key=lambda size: self._fastest_s[size] / size)

    def hopeless(
        self,
        queries: Sequence[Query],
        free_at_s: float,
        *,
        until_s: float = inf,
        is_late_hopeless: bool = True,
    ) -> list[Query]:
        """Return those of `queries`, earliest deadline first, that cannot be in time.

        `free_at_s`: when the device can take work. `until_s`: what ends later than that is
        hopeless, and (`is_late_hopeless`) what ends after its own deadline.
        """
        hopeless: list[Query] = []
        num_kept = 0
        for query in queries:
            finish_s = free_at_s + self.duration_s(num_kept + 1)
            if finish_s > until_s or (is_late_hopeless and finish_s > query.deadline_s):
                hopeless.append(query)
            else:
                num_kept += 1
        return hopeless

    def duration_s(self, count: int) -> float:
        """Return how long `count` queries take at the least."""
        full, rest = divmod(count, self._best)
        return full * self._fastest_s[self._best] + self._fastest_s[rest]
