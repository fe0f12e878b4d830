"""Cells of a grid: one policy on one trace with one seed, many of them in parallel processes.

A cell is plain data, so that it can be sent to another process; what it needs there (profile,
trace) is made from its words and kept for the next cell. Results come back in the order asked for,
however they were shared out.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slackfit.compiled.simulate import simulate_columns
from slackfit.derive import densified, with_overhead
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile
from slackfit.simulation.devices import DeviceModel, Failure, Slowdown
from traces.spec.spec import parse_spec
from traces.trace import Trace


class Cell(NamedTuple):
    """What to run. `num_subnets` 0 takes the profile as it is, else densifies it."""

    policy: str
    spec: str
    seed: int
    profile: str
    slo_s: float
    num_workers: int
    overhead_s: float = 0.0
    num_subnets: int = 0
    events: tuple[Failure | Slowdown, ...] = ()


class CellScore(NamedTuple):
    """What came of it: fractions, the count of queries, and the processor time of the run."""

    attainment: float
    accuracy: float
    num_queries: int
    cpu_s: float

    @property
    def utility(self) -> float:
        """Attainment x mean accuracy of the on-time queries."""
        return self.attainment * self.accuracy


class Estimate(NamedTuple):
    """A mean over seeds with the half width of its 95 % interval (0 for one seed)."""

    mean: float
    half_width: float


# Two-sided 95 % points of Student's t for 1 to 9 degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def estimate(values: Iterable[float]) -> Estimate:
    """Return mean and 95 % interval of values that are independent (seeds).

    >>> estimate([1.0, 2.0, 3.0]).mean
    2.0
    """
    numbers = list(values)
    count = len(numbers)
    mean = math.fsum(numbers) / count
    if count < 2:
        return Estimate(mean, 0.0)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / (count - 1))
    t95 = _T95[count - 2] if count - 2 < len(_T95) else 1.96
    return Estimate(mean, t95 * deviation / math.sqrt(count))


def run_cell(cell: Cell) -> CellScore:
    """Simulate one cell. Raises what the trace, the profile and the policy raise."""
    profile = cell_profile(cell)
    trace = _trace(cell.spec, cell.seed)
    policy = create_policy(cell.policy, profile)
    began_s = time.process_time()
    served = simulate_columns(
        trace.arrival_s,
        profile,
        policy,
        slo_s=cell.slo_s,
        num_workers=cell.num_workers,
        seed=cell.seed,
        devices=DeviceModel(events=cell.events),
    )
    cpu_s = time.process_time() - began_s
    columns = served.columns
    return CellScore(columns.attainment, columns.mean_accuracy, len(columns), cpu_s)


def run_cells(
    cells: Sequence[Cell],
    *,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_score: Callable[[Cell, CellScore], None] | None = None,
) -> list[CellScore]:
    """Return the scores in order of `cells`; `processes` None takes all cores this one may use.

    `progress` is called with (done, all), `on_score` with each cell as soon as it is there. One
    process runs here, without a pool.
    """
    count = len(os.sched_getaffinity(0)) if processes is None else processes
    scores: list[CellScore] = []

    def take(score: CellScore) -> None:
        if on_score:
            on_score(cells[len(scores)], score)
        scores.append(score)
        if progress:
            progress(len(scores), len(cells))

    if count <= 1 or len(cells) < 2:
        for cell in cells:
            take(run_cell(cell))
        return scores
    # Spawned, not forked: a fork of a process with threads may hang.
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        chunk = max(1, min(8, len(cells) // (4 * count)))
        for score in pool.map(run_cell, cells, chunksize=chunk):
            take(score)
    return scores


def cell_profile(cell: Cell) -> LatencyProfile:
    """Return the profile that a cell serves with."""
    return _profile(cell.profile, cell.num_subnets, cell.overhead_s)


def cell_arrivals(cell: Cell) -> np.ndarray:
    """Return the arrivals of a cell's trace, in seconds."""
    return _trace(cell.spec, cell.seed).arrival_s


@lru_cache(maxsize=8)
def _profile(path: str, num_subnets: int, overhead_s: float) -> LatencyProfile:
    profile = LatencyProfile.load(Path(path))
    if num_subnets:
        profile = densified(profile, num_subnets)
    return with_overhead(profile, overhead_s)


@lru_cache(maxsize=2)
def _trace(spec: str, seed: int) -> Trace:
    return parse_spec(spec, seed=seed)
