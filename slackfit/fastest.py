"""`FastestBatches`: the shortest batch of each size, on whichever subnet that is.

What a device can do at the most, whatever accuracy it costs: who waits in vain, when an answer can
come at the earliest and how much load is too much are all asked of this one table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FastestBatches:
    """`latency_s[b]` is the shortest batch of b, in seconds; 0 for none.

    `best_size` is the batch size that serves most queries a second.
    """

    latency_s: tuple[float, ...]
    best_size: int

    @classmethod
    def of(cls, rows: Iterable[Sequence[float]]) -> FastestBatches:
        """Return the table of subnets' latencies `rows`, each [b] the latency of a batch of b."""
        latency_s = tuple(min(column) for column in zip(*rows, strict=True))
        sizes = range(1, len(latency_s))
        return cls(latency_s, min(sizes, key=lambda size: latency_s[size] / size))

    @property
    def capacity_qps(self) -> float:
        """Queries a second that one device serves at the most."""
        return self.best_size / self.latency_s[self.best_size]

    def duration_s(self, count: int) -> float:
        """Return how long `count` queries take at the least, in batches of the best size."""
        full, rest = divmod(count, self.best_size)
        return full * self.latency_s[self.best_size] + self.latency_s[rest]
