"""`WorkTable`: latencies by how much work a query is, where queries differ and it is known.

A node of a graph with a thousand neighbours takes a subnet many times what a leaf takes it, and
another subnet hardly more. So there is no factor per query, but a row per (subnet, bucket of work):
what a batch takes whose queries are all of that bucket. A mixed batch takes the mean of its
queries' rows, which is exact where latency is a fixed part and a sum over queries.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Rows = Mapping[str, Mapping[str, tuple[float, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkTable:
    """`bounds` are the largest work of each bucket but the last, which has no bound, ascending.

    `latency_s[bucket]` is {subnet id: {quantile: seconds per profiled batch size}}.
    """

    bounds: tuple[float, ...]
    latency_s: tuple[Rows, ...]

    @property
    def num_buckets(self) -> int:
        """How many buckets there are."""
        return len(self.latency_s)

    def bucket(self, work: float) -> int:
        """Return the bucket of a query's work."""
        return bisect_left(self.bounds, work)

    def check(self, num_sizes: int, subnet_ids: Sequence[str]) -> None:
        """Raise ValueError naming the entry that is misshapen."""
        if list(self.bounds) != sorted(set(self.bounds)) or not all(
            map(math.isfinite, self.bounds)
        ):
            raise ValueError(f"work: bounds are {list(self.bounds)}, they must be increasing")
        if len(self.latency_s) != len(self.bounds) + 1:
            raise ValueError(
                f"work: {len(self.latency_s)} buckets for {len(self.bounds)} bounds, expected one "
                "more than bounds"
            )
        for number, rows in enumerate(self.latency_s):
            missing = sorted(set(subnet_ids) - rows.keys())
            if missing:
                raise ValueError(f"work: bucket {number} lacks {', '.join(missing)}")
            for subnet_id, quantiles in rows.items():
                _check_row(number, subnet_id, quantiles, num_sizes)

    def scaled(self, factor: float, delay_s: float = 0.0) -> WorkTable:
        """Return the table with every latency times `factor`, plus `delay_s`."""
        return replace(self, latency_s=_each(self.latency_s, factor, delay_s))

    def to_json(self) -> dict[str, Any]:
        """Return the file format (milliseconds)."""
        return {
            "bounds": list(self.bounds),
            "buckets": [
                {
                    i: {q: [round(t, 6) for t in row] for q, row in quantiles.items()}
                    for i, quantiles in rows.items()
                }
                for rows in _each(self.latency_s, 1e3)
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WorkTable:
        """Build from the file format. Raises KeyError, TypeError or ValueError."""
        rows = tuple(
            {
                str(i): {str(q): tuple(float(t) for t in row) for q, row in quantiles.items()}
                for i, quantiles in bucket.items()
            }
            for bucket in data["buckets"]
        )
        bounds = tuple(float(bound) for bound in data["bounds"])
        return cls(bounds=bounds, latency_s=_each(rows, 1e-3))


def _check_row(
    number: int, subnet_id: str, quantiles: Mapping[str, tuple[float, ...]], num_sizes: int
) -> None:
    if "p50" not in quantiles:
        raise ValueError(f"work: bucket {number}, subnet {subnet_id!r} has no p50")
    for quantile, row in quantiles.items():
        if len(row) != num_sizes or any(not math.isfinite(t) or t <= 0 for t in row):
            raise ValueError(
                f"work: bucket {number}, {subnet_id!r} {quantile} is {list(row)}, "
                f"expected {num_sizes} positive times"
            )


def _each(buckets: Sequence[Rows], factor: float, delay_s: float = 0.0) -> tuple[Rows, ...]:
    return tuple(
        {
            i: {q: tuple(t * factor + delay_s for t in row) for q, row in quantiles.items()}
            for i, quantiles in rows.items()
        }
        for rows in buckets
    )
