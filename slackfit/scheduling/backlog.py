"""Which waiting queries will be late whatever is done: the backlog on the fastest subnet.

The most that a device can do is to run the largest batches on its fastest subnet, earliest deadline
first. A query that is late even so is hopeless; those behind it are judged without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from slackfit.fastest import FastestBatches
from slackfit.query import Query


def hopeless(
    fastest: FastestBatches,
    queries: Sequence[Query],
    free_at_s: float,
    *,
    until_s: float = inf,
    is_late_hopeless: bool = True,
) -> list[Query]:
    """Return those of `queries`, earliest deadline first, that cannot be in time.

    `free_at_s`: when the device can take work. `until_s`: what ends later than that is hopeless,
    and (`is_late_hopeless`) what ends after its own deadline.
    """
    lost: list[Query] = []
    num_kept = 0  # samples
    for query in queries:
        finish_s = free_at_s + fastest.duration_s(num_kept + query.samples)
        if finish_s > until_s or (is_late_hopeless and finish_s > query.deadline_s):
            lost.append(query)
        else:
            num_kept += query.samples
    return lost
