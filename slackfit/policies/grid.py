"""A profile laid out for policies that search (subnet, batch size) pairs."""

from __future__ import annotations

from slackfit.profile import LatencyProfile
from slackfit.query import Decision


class Grid:
    """Latency rows in seconds by batch size, most accurate subnet first; batch sizes largest first.

    `late` is what to run when nothing is in time: the largest batch on the fastest subnet.
    """

    def __init__(self, profile: LatencyProfile, quantile: str) -> None:
        self.profile = profile
        rows = profile.table(quantile)
        self.most_accurate_first = [(s, rows[s]) for s in reversed(profile.subnet_ids)]
        self.accuracy = {s.subnet_id: s.accuracy for s in profile.subnets}
        sizes = (1, *profile.batch_sizes)
        #: Every latency that a slack is held against.
        self.latencies_s = tuple({row[b] for row in rows.values() for b in sizes})
        self.largest_first = profile.batch_sizes[::-1]
        largest = profile.max_batch_size
        self.late = Decision(min(rows, key=lambda s: rows[s][largest]), largest)
