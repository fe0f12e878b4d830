"""Simulation: the very scheduler that serves, under a clock that jumps.

`simulate` keeps one outcome per arrival; `stream.py` keeps only counts. Both drive the
scheduler with `driver.py`, whose header says in which order things happen.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import repeat
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt

from slackfit.policy import Policy
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome, Query
from slackfit.scheduling.scheduler import Scheduler
from slackfit.simulation.devices import AS_PROFILED, DeviceModel, Devices
from slackfit.simulation.driver import DrivenScheduler, VirtualTimeDriver

FloatArray = npt.NDArray[np.float64]
FEED_AT_ONCE = 16_384  # arrivals


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
    for begin in range(0, len(queries), FEED_AT_ONCE):
        drive.feed(queries[begin : begin + FEED_AT_ONCE])
        if progress:
            progress(min(begin + FEED_AT_ONCE, len(queries)), len(queries))
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


class ArrivedQueries(NamedTuple):
    """Queries as arrays, one entry each."""

    arrival_s: FloatArray
    slo_s: FloatArray
    min_accuracy: FloatArray
    query_class: npt.NDArray[np.int64]


def check_queries(
    arrival_s: FloatArray,
    slo_s: float | FloatArray,
    min_accuracy: float | FloatArray,
    query_class: npt.NDArray[np.int64] | None,
) -> ArrivedQueries:
    """Return the queries of these arrivals; each value is one for all, or one per arrival.

    Raises ValueError for arrivals that are not sorted and finite, or values that do not match.
    """
    arrivals = np.asarray(arrival_s, dtype=np.float64)
    if arrivals.ndim != 1 or not np.all(np.isfinite(arrivals)):
        raise ValueError(f"arrival_s has shape {arrivals.shape}, allowed one row of finite times")
    is_early = arrivals[1:] < arrivals[:-1]
    if np.any(is_early):
        at = int(np.argmax(is_early))
        raise ValueError(
            f"arrival_s must be sorted, but arrival {at + 1} ({arrivals[at + 1]} s) comes before "
            f"arrival {at} ({arrivals[at]} s)"
        )
    slo = np.asarray(slo_s, dtype=np.float64)
    if not np.all(slo > 0):
        raise ValueError(f"slo_s goes down to {slo.min()} s, allowed more than 0")
    classes = np.asarray(0 if query_class is None else query_class).astype(np.int64)
    return ArrivedQueries(
        arrivals,
        _per_query("slo_s", slo, arrivals),
        _per_query("min_accuracy", np.asarray(min_accuracy, dtype=np.float64), arrivals),
        _per_query("query_class", classes, arrivals),
    )


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
    queries = check_queries(arrival_s, slo_s, min_accuracy, query_class)
    arrivals = queries.arrival_s
    works = _per_query("work", np.asarray(work, dtype=np.float64), arrivals)
    columns = zip(
        range(first_id, first_id + len(arrivals)),
        arrivals.tolist(),
        (arrivals + queries.slo_s).tolist(),
        queries.min_accuracy.tolist(),
        queries.query_class.tolist(),
        repeat(None),
        repeat(1),
        works.tolist(),
        repeat(""),
        repeat(None),
    )
    return list(map(Query._make, columns))


_Values = TypeVar("_Values", bound=npt.NDArray[Any])


def _per_query(name: str, values: _Values, arrivals: FloatArray) -> _Values:
    """Return the values as one per arrival; one for all is not repeated in memory."""
    if values.ndim and values.shape != arrivals.shape:
        raise ValueError(
            f"{name} has shape {values.shape}, allowed one value or one for each of the "
            f"{len(arrivals)} arrivals"
        )
    return cast("_Values", np.broadcast_to(values, arrivals.shape))
