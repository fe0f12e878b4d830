"""`Statistics`: the protocol's statistics extension, one row per subnet (its version).

Counts are of samples: a request of four is four. Times are sums in nanoseconds, as the protocol has
them. A query that got no output counts as a failure in the row with the empty version, since no
subnet ran it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from serve.engine.reply import Reply

_NO_VERSION = ""


class _Duration:
    __slots__ = ("count", "total_s")

    def __init__(self) -> None:
        self.count = 0
        self.total_s = 0.0

    def add(self, sum_s: float, count: int = 1) -> None:
        self.count += count
        self.total_s += sum_s

    def row(self) -> dict[str, int]:
        return {"count": self.count, "ns": round(self.total_s * 1e9)}


class _Version:
    """The sums of one subnet."""

    def __init__(self) -> None:
        self.last_unix_s = 0.0
        self.num_batches = 0
        self.durations: defaultdict[str, _Duration] = defaultdict(_Duration)
        self.batches: defaultdict[int, _Duration] = defaultdict(_Duration)  # by batch size


class Statistics:
    """Sums over one model's queries since the server started; used by one thread."""

    def __init__(self, unix_clock: Callable[[], float]) -> None:
        self._unix_clock = unix_clock
        self._versions: defaultdict[str, _Version] = defaultdict(_Version)
        self._last_batch_id: int | None = None

    def observe(self, reply: Reply) -> None:
        """Count the end of one query, as many as it has samples.

        Those of one batch come one after the other.
        """
        outcome = reply.outcome
        samples = outcome.samples
        if not reply.is_executed or outcome.subnet_id is None:
            failed = self._versions[_NO_VERSION].durations["fail"]
            failed.add(outcome.latency_s * samples, samples)
            return
        version = self._versions[outcome.subnet_id]
        version.last_unix_s = self._unix_clock()
        version.durations["success"].add(outcome.latency_s * samples, samples)
        version.durations["queue"].add(reply.queue_s * samples, samples)
        version.durations["compute_infer"].add(reply.execution_s * samples, samples)
        if reply.batch_id != self._last_batch_id:
            self._last_batch_id = reply.batch_id
            version.num_batches += 1
            version.batches[outcome.batch_size].add(reply.execution_s)

    def rows(self, name: str, version: str | None = None) -> list[dict[str, Any]]:
        """Return the rows of the model called `name`, or of one version of it."""
        wanted = sorted(self._versions) if version is None else [version]
        return [_row(name, key, self._versions.get(key, _Version())) for key in wanted]


def _row(name: str, version_id: str, version: _Version) -> dict[str, Any]:
    kinds = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    return {
        "name": name,
        "version": version_id,
        "last_inference": round(version.last_unix_s * 1e3),
        "inference_count": version.durations["success"].count,
        "execution_count": version.num_batches,
        "inference_stats": {kind: version.durations[kind].row() for kind in kinds},
        "batch_stats": [
            {"batch_size": size, "compute_infer": duration.row()}
            for size, duration in sorted(version.batches.items())
        ],
    }
