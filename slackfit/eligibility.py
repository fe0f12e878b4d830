"""Which subnets may serve a query: its pin and its accuracy floor against a profile.

A query without constraints (`is_plain`) may run on every subnet; for the others the fastest legal
subnet per batch size is found once and remembered, so a look-up is O(1).
"""

from __future__ import annotations

from bisect import bisect_left

from slackfit.profile import LatencyProfile
from slackfit.query import Query


def is_plain(query: Query) -> bool:
    """Whether the query neither pins a subnet nor has an accuracy floor."""
    return query.subnet_id is None and query.min_accuracy <= 0.0


class Eligibility:
    """Answers for one profile at one latency quantile; latencies in seconds."""

    def __init__(self, profile: LatencyProfile, quantile: str) -> None:
        self.table = profile.table(quantile)
        self.accuracy = {subnet.subnet_id: subnet.accuracy for subnet in profile.subnets}
        self._ids = profile.subnet_ids  # ascending accuracy
        self._accuracies = [subnet.accuracy for subnet in profile.subnets]
        self._max_samples = profile.max_batch_size
        self._fastest: dict[tuple[int, int], str] = {}
        self.fastest_s = profile.fastest(quantile).latency_s[1]
        #: No batch takes longer.
        self.longest_s = max(map(max, self.table.values()))

    def accepts(self, query: Query, subnet_id: str) -> bool:
        """Whether `query` may run on `subnet_id`."""
        pin = query.subnet_id
        return (pin is None or pin == subnet_id) and query.min_accuracy <= self.accuracy[subnet_id]

    def fastest(self, query: Query, batch_size: int = 1) -> str | None:
        """Return the legal subnet with the lowest latency, None when no subnet is legal."""
        if query.subnet_id is not None:
            known = query.subnet_id in self.table
            return query.subnet_id if known and self.accepts(query, query.subnet_id) else None
        floor = bisect_left(self._accuracies, query.min_accuracy)
        if floor == len(self._ids):
            return None
        key = (floor, batch_size)
        if key not in self._fastest:
            self._fastest[key] = min(
                self._ids[floor:], key=lambda subnet_id: self.table[subnet_id][batch_size]
            )
        return self._fastest[key]

    def earliest_finish_s(self, query: Query, now_s: float) -> float | None:
        """Return when `query` would finish at best if it started alone now, None if never."""
        samples = query.samples
        if samples == 1 and is_plain(query):
            return now_s + self.fastest_s
        if samples > self._max_samples:
            return None
        subnet_id = self.fastest(query, samples)
        return None if subnet_id is None else now_s + self.table[subnet_id][samples]
