"""`WorkMix`: what batches take whose queries differ in work, and which queries fit into one.

A batch takes the mean of its queries' rows at its size (`slackfit.work_table`). A policy decides
for the most urgent query as if all were like it; the batch is then filled with what keeps it within
the time that was decided. What is too heavy waits for its own turn, in its place in the queue,
where the policy chooses a subnet for its work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from slackfit.eligibility import Eligibility
from slackfit.profile import LatencyProfile
from slackfit.query import Query

BucketOf = Callable[[float], int]
_SAME = 1 + 1e-9  # a full batch of equals takes exactly what was decided, but for rounding


class WorkMix:
    """Answers for one profile that has a `WorkTable`, at one latency quantile."""

    __slots__ = ("_buckets", "_eligible", "_profiles", "_tables")

    def __init__(self, profile: LatencyProfile, quantile: str) -> None:
        assert profile.work is not None, "made for profiles that have a table of work"
        self._buckets = profile.work
        buckets = range(profile.work.num_buckets)
        self._profiles = [profile.for_bucket(bucket) for bucket in buckets]
        self._tables = [own.table(quantile) for own in self._profiles]
        self._eligible = [Eligibility(own, quantile) for own in self._profiles]

    @classmethod
    def of(cls, profile: LatencyProfile, quantile: str) -> WorkMix | None:
        """Return the mix of a profile, None where it knows no work."""
        return None if profile.work is None else cls(profile, quantile)

    def profile_of(self, query: Query) -> LatencyProfile:
        """Return the profile of queries like this one."""
        return self._profiles[self._buckets.bucket(query.work)]

    def eligible(self, query: Query) -> Eligibility:
        """Return which subnets may serve this query, by latencies of its own work."""
        return self._eligible[self._buckets.bucket(query.work)]

    def latency_s(self, subnet_id: str, queries: Sequence[Query]) -> float:
        """Return what a batch of these queries takes."""
        num_samples = sum(query.samples for query in queries)
        bucket = self._buckets.bucket
        rows = [self._tables[bucket(q.work)][subnet_id][num_samples] * q.samples for q in queries]
        return sum(rows) / num_samples

    def room(self, subnet_id: str, size: int, head: Query) -> WorkRoom:
        """Return the room of a batch that was decided for `head`, before anything is in it."""
        rows = [table[subnet_id] for table in self._tables]
        return WorkRoom(rows, rows[self._buckets.bucket(head.work)][size], self._buckets.bucket)


class WorkRoom:
    """Says whether a query fits into the time of a batch, given those taken so far."""

    __slots__ = ("_bucket", "_budget_s", "_counts", "_num_samples", "_rows")

    def __init__(self, rows: Sequence[Sequence[float]], budget_s: float, bucket: BucketOf) -> None:
        self._rows = rows
        self._budget_s = budget_s * _SAME
        self._bucket = bucket
        self._counts = [0] * len(rows)
        self._num_samples = 0

    def fits(self, query: Query) -> bool:
        """Whether the batch stays within its time with this query too; the first one always."""
        if not self._num_samples:
            return True
        then = self._num_samples + query.samples
        if then >= len(self._rows[0]):
            return False
        total_s = self._rows[self._bucket(query.work)][then] * query.samples
        for row, count in zip(self._rows, self._counts, strict=True):
            if count:
                total_s += row[then] * count
        return total_s / then <= self._budget_s

    def take(self, query: Query) -> None:
        """Count a query in."""
        self._counts[self._bucket(query.work)] += query.samples
        self._num_samples += query.samples
