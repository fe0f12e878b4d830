"""Simulation: the very scheduler that serves, under a clock that jumps.

`simulate` keeps one outcome per arrival; `stream.py` keeps only counts. Both drive the
scheduler with `driver.py`, whose header says in which order things happen.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import repeat

import numpy as np
import numpy.typing as npt

from slackfit.policy import Policy
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome, Query
from slackfit.scheduling.scheduler import Scheduler
from slackfit.simulation.devices import AS_PROFILED, DeviceModel, Devices
from slackfit.simulation.driver import DrivenScheduler, VirtualTimeDriver

FloatArray = npt.NDArray[np.float64]
_PROGRESS_EVERY = 16_384  # arrivals


def simulate(
    arrival_s: FloatArray,
    profile: LatencyProfile,
    policy: Policy,
    *,
    slo_s: float | FloatArray,
    num_workers: int = 1,
    seed: int = 0,
    devices: DeviceModel = AS_PROFILED,
    drop_hopeless: bool | None = None,
    query_class: npt.NDArray[np.int64] | None = None,
    min_accuracy: float | FloatArray = 0.0,
    work: float | FloatArray = 1.0,
    scheduler: DrivenScheduler | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Serve every arrival in virtual time; return one outcome each, outcome i for arrival i.

    `slo_s`, `min_accuracy`, `query_class` and `work` are one value, or one per arrival. A batch
    takes its profiled latency and what `devices` add, of which scheduler and policy know nothing
    (what they shall know belongs in the profile); what is random there is drawn with `seed`. A
    given `scheduler` (a recording one, say) is driven as it is, and `profile`, `num_workers` and
    `drop_hopeless` stand back. `progress` is called with (arrivals so far, all arrivals) now and
    then.

    Raises ValueError for arrivals that are not sorted and finite or values that do not match
    them, for bad devices and events, and PolicyError when the policy fails.
    """
    if scheduler is None:
        scheduler = Scheduler(profile, policy, num_workers=num_workers, drop_hopeless=drop_hopeless)
    made = Devices(scheduler.num_workers, devices.under(policy), seed=seed)
    with collector_paused():
        queries = make_queries(arrival_s, slo_s, min_accuracy, query_class, work=work)
        return simulate_queries(queries, scheduler, devices=made, progress=progress)


def simulate_queries(
    queries: Sequence[Query],
    scheduler: DrivenScheduler,
    *,
    devices: Devices | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Serve `queries`, in order of arrival, in virtual time; return one outcome each, in order.

    `devices` None are as profiled. What `simulate` does for arrivals, for queries of any kind:
    pinned ones, ones of several samples or tenants.
    """
    made = Devices(scheduler.num_workers) if devices is None else devices
    by_id: dict[int, Outcome] = {}

    def note(outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            by_id[outcome[0]] = outcome

    drive = VirtualTimeDriver(scheduler, made, note)
    for begin in range(0, len(queries), _PROGRESS_EVERY):
        drive.feed(queries[begin : begin + _PROGRESS_EVERY])
        if progress:
            progress(min(begin + _PROGRESS_EVERY, len(queries)), len(queries))
    drive.end()
    return [by_id[query.query_id] for query in queries]


@contextmanager
def collector_paused() -> Generator[None]:
    """Pause the cyclic collector: a run makes millions of tuples and no cycles (1.5x faster)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def make_queries(
    arrival_s: FloatArray,
    slo_s: float | FloatArray,
    min_accuracy: float | FloatArray,
    query_class: npt.NDArray[np.int64] | None,
    first_id: int = 0,
    *,
    work: float | FloatArray = 1.0,
) -> list[Query]:
    """Return one query per arrival, numbered from `first_id`.

    Raises ValueError for arrivals that are not sorted and finite, or values that do not match.
    """
    arrivals = np.asarray(arrival_s, dtype=np.float64)
    if arrivals.ndim != 1 or not np.all(np.isfinite(arrivals)):
        raise ValueError(f"arrival_s has shape {arrivals.shape}, allowed one row of finite times")
    if np.any(np.diff(arrivals) < 0):
        at = int(np.argmax(np.diff(arrivals) < 0))
        raise ValueError(
            f"arrival_s must be sorted, but arrival {at + 1} ({arrivals[at + 1]} s) comes before "
            f"arrival {at} ({arrivals[at]} s)"
        )
    slo = _per_query("slo_s", slo_s, arrivals)
    if not np.all(slo > 0):
        raise ValueError(f"slo_s goes down to {slo.min()} s, allowed more than 0")
    floors = _per_query("min_accuracy", min_accuracy, arrivals)
    classes = _per_query("query_class", 0 if query_class is None else query_class, arrivals)
    works = _per_query("work", work, arrivals)
    columns = zip(
        range(first_id, first_id + len(arrivals)),
        arrivals.tolist(),
        (arrivals + slo).tolist(),
        floors.tolist(),
        classes.astype(np.int64).tolist(),
        repeat(None),
        repeat(1),
        works.tolist(),
        repeat(""),
        repeat(None),
    )
    return list(map(Query._make, columns))


def _per_query(
    name: str, value: float | npt.NDArray[np.generic], arrivals: FloatArray
) -> FloatArray:
    values = np.asarray(value, dtype=np.float64)
    if values.ndim and values.shape != arrivals.shape:
        raise ValueError(
            f"{name} has shape {values.shape}, allowed one value or one for each of the "
            f"{len(arrivals)} arrivals"
        )
    return np.broadcast_to(values, arrivals.shape)
