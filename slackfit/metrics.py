"""One report from the outcomes of one run, simulated or live.

SLO attainment = on-time queries / all arrived queries. Mean serving accuracy = mean profiled
accuracy over on-time queries (0 if none). Utility = their product. Accuracy and attainment are
fractions; times are seconds unless a key says `_ms`. Every figure is per sample: a query that holds
sixteen counts sixteen times. Executed means on time or late. The same
outcomes give the same bytes: no dates, a fixed order of keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from slackfit.outcome_columns import Floats, OutcomeColumns
from slackfit.query import STATUSES, Outcome

SLACK = 1e-9
"""Of a fraction: what a sum of many floats may lack of the very number that it is of."""
_CDF_POINTS = 200
_MAX_BINS = 120
_ON_TIME = STATUSES.index("on_time")

Ints = npt.NDArray[np.int64]


def as_good(wanted: float) -> float:
    """Return the least figure that counts as what is wanted or promised.

    All served at an accuracy of 0.7944 have a mean of 0.7943999999999999, as floats are added up.
    """
    return wanted - SLACK


def summarize(
    outcomes: Sequence[Outcome],
    *,
    policy: str,
    slo_s: float,
    duration_s: float,
    seed: int | None,
    profile: str,
    wall_s: float | None = None,
    bin_s: float | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """Return the report of one run as plain data, ready for JSON.

    `duration_s` is the length of the trace, over which goodput is counted; `bin_s` the width of
    the time series' bins (None: a round width that gives at most 120). `extra` is added as it is
    and may not replace a key. Raises ValueError for a duration or bin that is not positive.
    """
    if not duration_s > 0:
        raise ValueError(f"duration_s is {duration_s}, allowed more than 0")
    bin_s = _round_bin_s(duration_s) if bin_s is None else bin_s
    if not bin_s > 0:
        raise ValueError(f"bin_s is {bin_s}, allowed more than 0")
    columns = _columns(outcomes)
    arrived = len(columns.status)
    counts = np.bincount(columns.status, minlength=len(STATUSES))
    on_time = int(counts[_ON_TIME])
    attainment = on_time / arrived if arrived else 0.0
    accuracy = _mean(columns.accuracy[columns.on_time])
    latency_s = np.sort(columns.latency_s[columns.executed])
    first = _first_of_batch(columns)
    report: dict[str, Any] = {
        "policy": policy,
        "slo_attainment": attainment,
        "mean_serving_accuracy": accuracy,
        "utility": attainment * accuracy,
        "goodput_qps": on_time / duration_s,
        "num_queries": arrived,
        "outcomes": dict(zip(STATUSES, counts.tolist(), strict=True)),
        "latency_ms": _latency_ms(latency_s),
        "subnets": _subnets(columns, first),
        "seed": seed,
        "profile": profile,
        "wall_s": wall_s,
        "slo_ms": slo_s * 1e3,
        "duration_s": duration_s,
        "reasons": _reasons(columns),
        "batch_sizes": _batch_sizes(columns, first),
        "series": _series(columns, duration_s, bin_s),
        "latency_cdf": _latency_cdf(latency_s),
    }
    taken = sorted(set(extra) & set(report))
    if taken:
        raise ValueError(f"extra keys {', '.join(taken)} are the report's own; rename them")
    return {**report, **extra}


def _mean(values: Floats) -> float:
    """Return the mean, 0 of nothing; of equal values it is that value to the last bit."""
    if not len(values):
        return 0.0
    base = values.min()
    return float(base + (values - base).mean())


def _columns(outcomes: Sequence[Outcome]) -> OutcomeColumns:
    """Return a row per sample, subnets numbered in order of (accuracy, id) where they answered."""
    columns = OutcomeColumns.of(outcomes).per_sample()
    named = columns.subnet >= 0
    accuracy_of = np.zeros(len(columns.subnet_ids))
    accuracy_of[columns.subnet[named]] = columns.accuracy[named]
    ids = columns.subnet_ids
    order = sorted(range(len(ids)), key=lambda i: (accuracy_of[i], ids[i]))
    places = np.empty(len(ids) + 1, dtype=np.int32)
    places[order] = np.arange(len(ids))
    places[-1] = -1  # where there is none
    subnet = places[columns.subnet]
    subnet[~columns.executed] = -1
    return replace(columns, subnet=subnet, subnet_ids=tuple(ids[i] for i in order))


def _first_of_batch(columns: OutcomeColumns) -> Ints:
    """Return one executed query of each batch; a batch is one (worker, start, subnet)."""
    ran = np.flatnonzero(columns.executed)
    keys = (columns.subnet[ran], columns.start_s[ran], columns.worker[ran])
    order = np.lexsort(keys)
    is_new = np.ones(len(ran), dtype=np.bool_)
    if len(ran):
        is_new[1:] = np.any([np.diff(key[order]) != 0 for key in keys], axis=0)
    return ran[order[is_new]]


def _reasons(columns: OutcomeColumns) -> dict[str, int]:
    counts = np.bincount(columns.reason, minlength=len(columns.reasons)).tolist()
    found = {r: n for r, n in zip(columns.reasons, counts, strict=True) if r and n}
    return dict(sorted(found.items()))


def _latency_ms(latency_s: Floats) -> dict[str, float | None]:
    if not len(latency_s):
        return dict.fromkeys(("p50", "p90", "p99", "max"))
    p50, p90, p99, largest = (np.percentile(latency_s, (50, 90, 99, 100)) * 1e3).tolist()
    return {"p50": p50, "p90": p90, "p99": p99, "max": largest}


def _latency_cdf(latency_s: Floats) -> dict[str, list[float]]:
    count = len(latency_s)
    at = np.unique(np.linspace(0, count - 1, min(count, _CDF_POINTS)).round().astype(np.int64))
    return {"ms": (latency_s[at] * 1e3).tolist(), "fraction": ((at + 1) / max(count, 1)).tolist()}


def _subnets(columns: OutcomeColumns, first: Ints) -> dict[str, dict[str, float]]:
    kinds = len(columns.subnet_ids)
    queries = np.bincount(columns.subnet[columns.subnet >= 0], minlength=kinds).tolist()
    named = first[columns.subnet[first] >= 0]  # servers of others do not say which subnet ran
    batches = np.bincount(columns.subnet[named], minlength=kinds).tolist()
    report: dict[str, dict[str, float]] = {}
    for i, subnet_id in enumerate(columns.subnet_ids):
        if queries[i]:
            accuracy = float(columns.accuracy[columns.subnet == i][0])
            report[subnet_id] = {
                "queries": queries[i],
                "batches": batches[i],
                "accuracy": accuracy,
            }
    return report


def _batch_sizes(columns: OutcomeColumns, first: Ints) -> dict[str, int]:
    sizes, counts = np.unique(columns.batch_size[first], return_counts=True)
    return {str(b): n for b, n in zip(sizes.tolist(), counts.tolist(), strict=True)}


def _series(columns: OutcomeColumns, duration_s: float, bin_s: float) -> dict[str, Any]:
    """Return the time series; `t_s` are the bins' starts, arrivals at the very end count last."""
    bins = max(1, math.ceil(duration_s / bin_s - 1e-9))
    where = np.clip((columns.arrival_s / bin_s).astype(np.int64), 0, bins - 1)
    arrived = np.bincount(where, minlength=bins)
    on_time = np.bincount(where[columns.on_time], minlength=bins)
    served = columns.accuracy[columns.on_time]
    accuracy = np.bincount(where[columns.on_time], weights=served, minlength=bins)
    starts = np.arange(bins, dtype=np.float64) * bin_s
    per_subnet = {
        subnet_id: np.bincount(where[columns.subnet == i], minlength=bins).tolist()
        for i, subnet_id in enumerate(columns.subnet_ids)
        if np.any(columns.subnet == i)
    }
    return {
        "bin_s": bin_s,
        "t_s": starts.tolist(),
        "arrived": arrived.tolist(),
        "on_time": on_time.tolist(),
        "attainment": _ratios(on_time, arrived),
        "accuracy": _ratios(accuracy, on_time),
        "queue_depth": _queue_depth(columns, np.append(starts[1:], bins * bin_s)),
        "subnets": per_subnet,
    }


def _queue_depth(columns: OutcomeColumns, at_s: Floats) -> list[int]:
    """Return how many admitted queries wait just before each time: come, not started or ended."""
    came_s = np.sort(columns.arrival_s[columns.admitted])
    left_s = np.sort(columns.left_s[columns.admitted])
    came = np.searchsorted(came_s, at_s)
    return (came - np.searchsorted(left_s, at_s)).tolist()


def _ratios(numerators: npt.NDArray[np.generic], counts: Ints) -> list[float | None]:
    pairs = zip(numerators.tolist(), counts.tolist(), strict=True)
    return [numerator / count if count else None for numerator, count in pairs]


def _round_bin_s(duration_s: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that gives at most 120 bins.

    >>> _round_bin_s(60.0), _round_bin_s(1.0)
    (0.5, 0.01)
    """
    least = duration_s / _MAX_BINS
    power = math.floor(math.log10(least))
    steps = [float(f"{m}e{p}") for p in (power, power + 1) for m in (1, 2, 5)]
    return next(step for step in steps if step >= least)
