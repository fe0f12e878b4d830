"""Simulation of traces that do not fit in memory: arrivals come in pieces, only counts are kept.

Memory is flat in the trace's length: what waits and runs, one piece of arrivals, and a tally whose
latency quantiles come from a histogram with bins of 1 % (so they are within 0.5 %).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from slackfit.policy import Policy
from slackfit.profile import LatencyProfile
from slackfit.query import STATUSES, Outcome
from slackfit.scheduling.scheduler import Scheduler
from slackfit.simulation.devices import AS_PROFILED, DeviceModel, Devices
from slackfit.simulation.driver import VirtualTimeDriver
from slackfit.simulation.simulate import FEED_AT_ONCE, collector_paused, make_queries

FloatArray = npt.NDArray[np.float64]
_FLUSH_AT = 16_384  # outcomes
_SHORTEST_S, _LONGEST_S, _STEP = 1e-6, 1e5, 1.01
_NUM_BINS = math.ceil(math.log(_LONGEST_S / _SHORTEST_S) / math.log(_STEP))


class Tally:
    """Counts of outcomes, and a histogram of the latencies of executed queries."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.on_time_of: Counter[str] = Counter()  # per subnet
        self.queries_of: Counter[str] = Counter()  # per subnet
        self.batches_of: Counter[str] = Counter()
        self.accuracy_of: dict[str, float] = {}
        self._bins = np.zeros(_NUM_BINS, dtype=np.int64)
        self._max_s = 0.0
        self._latencies_s: list[float] = []

    def note(self, outcomes: Sequence[Outcome]) -> None:
        """Count outcomes that the scheduler handed out together."""
        for outcome in outcomes:
            self.statuses[outcome[1]] += 1
            if outcome[2]:
                self.reasons[outcome[2]] += 1
        if not outcomes or outcomes[0][5] is None or outcomes[0][1] == "failed":
            return
        # Executed outcomes come batch by batch: one subnet and one end for all.
        subnet_id = outcomes[0][7]
        assert subnet_id is not None, "what was executed ran on a subnet"
        finish_s = outcomes[0][6]
        self.batches_of[subnet_id] += 1
        self.queries_of[subnet_id] += len(outcomes)
        self.accuracy_of[subnet_id] = outcomes[0][8]
        self.on_time_of[subnet_id] += sum(outcome[1] == "on_time" for outcome in outcomes)
        self._latencies_s += [finish_s - outcome[3] for outcome in outcomes]
        if len(self._latencies_s) >= _FLUSH_AT:
            self._flush()

    def report(
        self, *, policy: str, slo_s: float, duration_s: float, seed: int, profile: str
    ) -> dict[str, Any]:
        """Return the report of `slackfit.metrics.summarize`, less its series and distribution."""
        self._flush()
        total = self.statuses.total()
        on_time = self.statuses["on_time"]
        attainment = on_time / total if total else 0.0
        accurate = math.fsum(n * self.accuracy_of[s] for s, n in self.on_time_of.items())
        accuracy = accurate / on_time if on_time else 0.0
        return {
            "policy": policy,
            "slo_attainment": attainment,
            "mean_serving_accuracy": accuracy,
            "utility": attainment * accuracy,
            "goodput_qps": on_time / duration_s,
            "num_queries": total,
            "outcomes": {status: self.statuses[status] for status in STATUSES},
            "latency_ms": self._latency_ms(),
            "subnets": {
                s: {
                    "queries": self.queries_of[s],
                    "batches": self.batches_of[s],
                    "accuracy": self.accuracy_of[s],
                }
                for s in sorted(self.accuracy_of, key=lambda s: (self.accuracy_of[s], s))
            },
            "seed": seed,
            "profile": profile,
            "wall_s": None,
            "slo_ms": slo_s * 1e3,
            "duration_s": duration_s,
            "reasons": dict(sorted(self.reasons.items())),
        }

    def quantile_s(self, share: float) -> float | None:
        """Return the latency that `share` of the executed queries did not exceed, within 0.5 %."""
        self._flush()
        cumulated: npt.NDArray[np.int64] = np.cumsum(self._bins)
        total = int(cumulated[-1])
        if total == 0:
            return None
        at = int(np.searchsorted(cumulated, max(share * total, 1)))
        return min(_SHORTEST_S * _STEP ** (at + 0.5), self._max_s)

    def _flush(self) -> None:
        if not self._latencies_s:
            return
        latencies_s = np.array(self._latencies_s)
        self._latencies_s.clear()
        self._max_s = max(self._max_s, float(latencies_s.max()))
        at = np.log(np.maximum(latencies_s, _SHORTEST_S) / _SHORTEST_S) / math.log(_STEP)
        bins = np.minimum(at.astype(np.int64), _NUM_BINS - 1)
        self._bins += np.bincount(bins, minlength=_NUM_BINS)

    def _latency_ms(self) -> dict[str, float | None]:
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
        found = {name: self.quantile_s(share) for name, share in shares.items()}
        found["max"] = self._max_s if self._bins.any() else None
        return {name: None if s is None else s * 1e3 for name, s in found.items()}


def simulate_stream(
    pieces: Iterable[FloatArray],
    profile: LatencyProfile,
    policy: Policy,
    *,
    slo_s: float,
    num_workers: int = 1,
    seed: int = 0,
    devices: DeviceModel = AS_PROFILED,
    drop_hopeless: bool | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tally:
    """Serve arrivals that come in pieces (each sorted, none before the last of the one before).

    The same decisions as `simulate.simulate` takes for all pieces together; see there for
    the options. `progress` is called with how many arrived.

    Raises ValueError for unsorted arrivals and bad devices.
    """
    scheduler = Scheduler(profile, policy, num_workers=num_workers, drop_hopeless=drop_hopeless)
    tally = Tally()
    made = Devices(num_workers, devices.under(policy), seed=seed)
    drive = VirtualTimeDriver(scheduler, made, tally.note)
    count, last_s = 0, -math.inf
    with collector_paused():
        for piece in pieces:
            if len(piece) and piece[0] < last_s:
                raise ValueError(
                    f"a piece begins at {piece[0]} s, before the last one's {last_s} s"
                )
            for begin in range(0, len(piece), FEED_AT_ONCE):
                part = piece[begin : begin + FEED_AT_ONCE]
                drive.feed(make_queries(part, slo_s, 0.0, None, first_id=count))
                count += len(part)
            if len(piece):
                last_s = float(piece[-1])
            if progress:
                progress(count)
        drive.end()
    return tally
