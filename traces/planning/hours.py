"""A long trace served hour by hour, by many fleets at once: nothing of it is kept but counts.

The arrivals of an hour are drawn once, in pieces that stay in the caches, and fed to every fleet
that is still asked about. Hours are served apart, the busiest first and in several processes: what
waits at the end of one is finished there, and a fleet that has missed too much is asked no more:
too much of what arrives, which is counted, since it may be far from what the rates say.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np

from slackfit.compiled.setup import why_not
from slackfit.compiled.simulate import CompiledRun
from slackfit.policies import create_policy
from slackfit.simulation.devices import DeviceModel
from slackfit.simulation.routing import ONE_QUEUE, Routing
from traces.planning.candidates import FleetCandidate
from traces.planning.promise import Promise
from traces.planning.trial import NUM_BLOCKS, Counts, Trial
from traces.spec.streamed import PieceSource
from traces.trace import TraceError

HOUR_S = 3600.0


class Fielded(NamedTuple):
    """So many devices of a candidate, asked about."""

    candidate: FleetCandidate
    workers: int


@dataclass(frozen=True, kw_only=True)
class HourJob:
    """An hour of a source, and the fleets that serve it."""

    source: PieceSource
    hour: int
    blocks: int
    fleets: Sequence[Fielded]
    slo_s: float
    floor: float
    devices: DeviceModel
    seed: int


class HourCounts(NamedTuple):
    """Arrivals per block of an hour, and of each fleet the on-time ones and their accuracies."""

    hour: int
    arrived: np.ndarray
    on_time: list[np.ndarray]
    accurate: list[np.ndarray]


def num_hours(source: PieceSource) -> int:
    """Return how many hours a source has, the last of which may be short."""
    return math.ceil(source.duration_s / HOUR_S - 1e-9)


def serve_hour(job: HourJob) -> HourCounts:
    """Serve one hour by each fleet. Arrivals count from the hour's begin."""
    begin_s = job.hour * HOUR_S
    length_s = min(HOUR_S, job.source.duration_s - begin_s)
    block_s = length_s / job.blocks
    runs = [
        CompiledRun(
            fleet.candidate.profile, create_policy(fleet.candidate.policy, fleet.candidate.profile),
            num_workers=fleet.workers, seed=job.seed, devices=job.devices,
            has_floors=job.floor > 0.0, block_s=block_s, num_blocks=job.blocks,
        )
        for fleet in job.fleets
    ]  # fmt: skip
    arrived = np.zeros(job.blocks, np.int64)
    for number in job.source.between(begin_s, begin_s + length_s):
        arrival_s = job.source.piece(number) - begin_s
        if not len(arrival_s):
            continue
        places = np.minimum((arrival_s / block_s).astype(np.int64), job.blocks - 1)
        arrived += np.bincount(places, minlength=job.blocks)
        deadline_s = arrival_s + job.slo_s
        floors = np.full(len(arrival_s), job.floor) if job.floor else None
        for run in runs:
            run.feed(arrival_s, deadline_s, floors)
    for run in runs:
        run.finish()
    return HourCounts(
        job.hour, arrived, [r.on_time.sum(axis=1) for r in runs],
        [r.on_time @ r.accuracies for r in runs],
    )  # fmt: skip


def num_arrivals(source: PieceSource, hour: int) -> int:
    """Draw the arrivals of an hour and return how many they are."""
    pieces = source.between(hour * HOUR_S, (hour + 1) * HOUR_S)
    return sum(len(source.piece(number)) for number in pieces)


class HourlyTrials:
    """Trials of fleets on whole long traces; use it as a context, it may hold processes."""

    def __init__(
        self,
        slo_s: float,
        promise: Promise,
        devices: DeviceModel,
        *,
        processes: int | None = None,
    ) -> None:
        """Serve in so many processes (None: one for each core)."""
        self._slo_s = slo_s
        self._promise = promise
        self._devices = devices
        self._count = len(os.sched_getaffinity(0)) if processes is None else processes
        self._pool: Executor | None = None
        self._num_queries: dict[PieceSource, int] = {}
        self.num_runs = 0

    def __enter__(self) -> HourlyTrials:
        if self._count > 1:
            # Spawned, not forked: a fork of a process with threads may hang.
            self._pool = ProcessPoolExecutor(self._count, mp_context=get_context("spawn"))
        return self

    def __exit__(self, *_: Any) -> None:
        with nullcontext() if self._pool is None else self._pool:
            self._pool = None

    def num_queries(self, source: PieceSource) -> int:
        """Return how many queries arrive in all, which takes drawing them once."""
        if source not in self._num_queries:
            asked = (repeat(source), range(num_hours(source)))
            counts = (
                map(num_arrivals, *asked)
                if self._pool is None
                else self._pool.map(num_arrivals, *asked)
            )
            self._num_queries[source] = sum(counts)
        return self._num_queries[source]

    def _is_lost(self, source: PieceSource, missed: int) -> bool:
        """Whether a fleet that has missed so many can't keep the promise any more.

        Arrivals are counted only where it has missed too many of those that are expected.
        """
        if missed <= self._promise.spared(expected_queries(source)):
            return False
        return missed > self._promise.spared(self.num_queries(source))

    def run(self, source: PieceSource, fleets: Sequence[Fielded], seed: int) -> list[Trial]:
        """Serve the whole trace by each fleet; those that can't keep the promise end early."""
        hours = num_hours(source)
        blocks = max(1, round(NUM_BLOCKS / hours))
        missed = [0] * len(fleets)
        asked = list(range(len(fleets)))
        arrived = np.zeros((hours, blocks), np.int64)
        on_time = np.zeros((len(fleets), hours, blocks), np.int64)
        accurate = np.zeros((len(fleets), hours, blocks))
        order = busiest_first(source)
        for first in range(0, hours, self._count):
            asked = [i for i in asked if not self._is_lost(source, missed[i])]
            if not asked:
                break
            jobs = [
                HourJob(
                    source=source, hour=hour, blocks=blocks, fleets=[fleets[i] for i in asked],
                    slo_s=self._slo_s, floor=self._promise.floor, devices=self._devices, seed=seed,
                )
                for hour in order[first : first + self._count]
            ]  # fmt: skip
            self.num_runs += len(jobs) * len(asked)
            for found in (
                map(serve_hour, jobs) if self._pool is None else self._pool.map(serve_hour, jobs)
            ):
                arrived[found.hour] = found.arrived
                for place, i in enumerate(asked):
                    on_time[i, found.hour] = found.on_time[place]
                    accurate[i, found.hour] = found.accurate[place]
                    missed[i] += int(found.arrived.sum() - found.on_time[place].sum())
        if asked:
            self._num_queries[source] = int(arrived.sum())
        return [
            Trial(
                Counts(arrived.ravel(), on_time[i].ravel(), accurate[i].ravel()),
                ended_early=i not in asked,
            )
            for i in range(len(fleets))
        ]


def expected_queries(source: PieceSource) -> float:
    """Return how many arrivals the rates of a source come to; what arrives varies about that."""
    return source.expected_qps * source.duration_s


def busiest_first(source: PieceSource) -> list[int]:
    """Return the hours, those with the highest rate first, in order where all are alike."""
    hours = range(num_hours(source))
    if source.rates_qps is None:
        return list(hours)
    rates = source.rates_qps
    mean_qps = [
        float(np.mean(rates[r.start : r.stop] if len(r) else [0.0]))
        for r in (source.between(h * HOUR_S, (h + 1) * HOUR_S) for h in hours)
    ]
    return sorted(hours, key=lambda hour: -mean_qps[hour])


def check_streamable(promise: Promise, routings: Sequence[Routing]) -> None:
    """Refuse what needs an outcome for each query, or more than one queue. Raises TraceError."""
    if promise.parts:
        raise TraceError("a streamed trace has no tenants and classes; promise to all alike")
    for routing in routings:
        if routing != ONE_QUEUE:
            raise TraceError(f"--stream plans for one queue, not for routing {routing}")


def check_compiled(fleets: Sequence[FleetCandidate], devices: DeviceModel) -> None:
    """Refuse fleets that have no compiled form. Raises TraceError."""
    for fleet in fleets:
        why = why_not(create_policy(fleet.policy, fleet.profile), fleet.profile, devices)
        if why:
            raise TraceError(f"--stream needs the compiled scheduler, but {why}")
