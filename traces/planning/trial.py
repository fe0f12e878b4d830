"""One fleet on some traffic: attainment and accuracy, in blocks of time, so that both have error.

Outcomes are counted, never kept, and a trial that can no longer keep the promise ends early.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from slackfit.compiled.setup import why_not
from slackfit.compiled.simulate import CompiledRun, simulate_columns
from slackfit.policies import create_policy
from slackfit.simulation.devices import AS_PROFILED, DeviceModel
from traces.planning.candidates import FleetCandidate
from traces.planning.promise import Promise
from traces.trace import FloatArray

NUM_BLOCKS = 120
_PIECES = 8
_RESAMPLES = 400
_BLOCKS_TOGETHER = 3  # neighbours are alike: they are drawn together


@dataclass(frozen=True, slots=True)
class Traffic:
    """Arrivals in seconds from the start, how long that lasts, and deadlines after arrival."""

    arrival_s: FloatArray
    duration_s: float
    slo_s: float | FloatArray

    def faster(self, factor: float) -> Traffic:
        """Return the same arrivals closer together; deadlines stay."""
        return Traffic(self.arrival_s / factor, self.duration_s / factor, self.slo_s)

    def with_slo(self, factor: float) -> Traffic:
        """Return the same with longer deadlines."""
        return Traffic(self.arrival_s, self.duration_s, self.slo_s * factor)

    def between(self, begin_s: float, end_s: float) -> Traffic:
        """Return the part that arrives in [begin_s, end_s), counted from its begin."""
        first, last = np.searchsorted(self.arrival_s, [begin_s, end_s]).tolist()
        slo_s = self.slo_s if np.ndim(self.slo_s) == 0 else np.asarray(self.slo_s)[first:last]
        return Traffic(self.arrival_s[first:last] - begin_s, end_s - begin_s, slo_s)

    def busiest(self, share: float) -> Traffic:
        """Return the contiguous part of that share of the time with the most arrivals."""
        length_s = share * self.duration_s
        starts_s = np.linspace(0.0, self.duration_s - length_s, 64)
        counts = np.diff(np.searchsorted(self.arrival_s, [starts_s, starts_s + length_s]), axis=0)
        begin_s = float(starts_s[int(np.argmax(counts))])
        return self.between(begin_s, begin_s + length_s)

    @property
    def rate_qps(self) -> float:
        """Arrivals per second."""
        return len(self.arrival_s) / self.duration_s


class Interval(NamedTuple):
    """What 90 of 100 redrawn traces lie within."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Trial:
    """Counts per block of arrivals; `ended_early` where the rest could no longer matter."""

    arrived: np.ndarray
    on_time: np.ndarray
    accurate: np.ndarray  # sums of accuracies of those on time
    ended_early: bool
    why_python: str

    @property
    def attainment(self) -> float:
        """On-time queries / all."""
        return float(self.on_time.sum() / max(self.arrived.sum(), 1))

    @property
    def accuracy(self) -> float:
        """Mean accuracy of those on time, 0 of none."""
        return float(self.accurate.sum() / max(self.on_time.sum(), 1))

    def keeps(self, promise: Promise) -> bool:
        """Whether it kept the promise."""
        return not self.ended_early and promise.is_kept(self.attainment, self.accuracy)

    def share_kept(self, promise: Promise) -> float:
        """Return how many of the redrawn traces kept the promise, a fraction."""
        if self.ended_early:
            return 0.0
        attainment, accuracy = self._redrawn()
        kept = (attainment >= promise.attainment) & (accuracy >= promise.accuracy)
        return float(kept.mean())

    def intervals(self) -> tuple[Interval, Interval]:
        """Return those of attainment and accuracy."""
        low_high = [np.quantile(values, (0.05, 0.95)).tolist() for values in self._redrawn()]
        return Interval(*low_high[0]), Interval(*low_high[1])

    def _redrawn(self) -> tuple[np.ndarray, np.ndarray]:
        """Attainment and accuracy of traces made of this one's blocks (Künsch, 1989), seeded."""
        count = len(self.arrived)
        rng = np.random.default_rng(0)
        starts = rng.integers(0, count, (_RESAMPLES, -(-count // _BLOCKS_TOGETHER)))
        places = (starts[:, :, None] + np.arange(_BLOCKS_TOGETHER)) % count
        places = places.reshape(_RESAMPLES, -1)[:, :count]
        arrived, on_time, accurate = (
            values[places].sum(axis=1) for values in (self.arrived, self.on_time, self.accurate)
        )
        return on_time / np.maximum(arrived, 1), accurate / np.maximum(on_time, 1)


def run_trial(
    candidate: FleetCandidate,
    count: int,
    traffic: Traffic,
    *,
    promise: Promise | None = None,
    devices: DeviceModel = AS_PROFILED,
    seed: int = 0,
) -> Trial:
    """Serve the traffic on `count` devices behind one queue.

    With a `promise` the trial ends as soon as too many have missed it.
    """
    profile = candidate.profile
    policy = create_policy(candidate.policy, profile)
    block_s = traffic.duration_s / NUM_BLOCKS
    arrival_s = traffic.arrival_s
    places = np.minimum((arrival_s / block_s).astype(np.int64), NUM_BLOCKS - 1)
    arrived = np.bincount(places, minlength=NUM_BLOCKS)
    why = why_not(policy, profile, devices)
    if why:
        columns = simulate_columns(
            arrival_s, profile, policy, slo_s=traffic.slo_s, num_workers=count, seed=seed,
            devices=devices,
        ).columns  # fmt: skip
        is_on_time = columns.on_time
        served = columns.accuracy[is_on_time]
        on_time = np.bincount(places[is_on_time], minlength=NUM_BLOCKS)
        accurate = np.bincount(places[is_on_time], weights=served, minlength=NUM_BLOCKS)
        return Trial(arrived, on_time, accurate, False, why)
    run = CompiledRun(
        profile, policy, num_workers=count, seed=seed, devices=devices, block_s=block_s,
        num_blocks=NUM_BLOCKS,
    )  # fmt: skip
    allowed = len(arrival_s) if promise is None else (1 - promise.attainment) * len(arrival_s)
    ended_early = False
    deadline_s = arrival_s + traffic.slo_s
    for part in np.array_split(np.arange(len(arrival_s)), _PIECES):
        if not len(part):
            continue
        inside = slice(int(part[0]), int(part[-1]) + 1)
        run.feed(arrival_s[inside], deadline_s[inside])
        ended = run.statuses
        if sum(ended.values()) - ended["on_time"] > allowed + 1e-9:
            ended_early = True
            break
    if not ended_early:
        run.finish()
    return Trial(arrived, run.on_time.sum(axis=1), run.on_time @ run.accuracies, ended_early, "")
