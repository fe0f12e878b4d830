"""What honest users get: deadlines, accuracy, floors, on one trace for both servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from serve.audit.prober import Probe, Prober
from serve.client import InferError


class HonestQuery(NamedTuple):
    """When a query is sent, in seconds from the start, and what it asks."""

    at_s: float
    asked: Probe


class HonestEnd(NamedTuple):
    """Whether it was answered in time as its client judges, and how accurately."""

    is_on_time: bool
    accuracy: float


def honest_trace(
    rate_qps: float, duration_s: float, floors: Sequence[float], slos_ms: Sequence[float], seed: int
) -> list[HonestQuery]:
    """Return Poisson arrivals; each asks for one of the floors within one of the deadlines."""
    rng = np.random.default_rng(seed)
    times_s = np.cumsum(rng.exponential(1 / rate_qps, round(rate_qps * duration_s)))
    return [
        HonestQuery(float(t), Probe(float(rng.choice(floors)), float(rng.choice(slos_ms))))
        for t in times_s
    ]


async def served(
    prober: Prober, images: np.ndarray, trace: Sequence[HonestQuery]
) -> list[HonestEnd]:
    """Send the trace, each query at its time, judged from then on."""
    start_s = time.monotonic() + 0.1

    async def one(place: int, query: HonestQuery) -> HonestEnd:
        due_s = start_s + query.at_s
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        try:
            seen = await prober.ask(images[place % len(images)], query.asked)
        except InferError:
            return HonestEnd(False, 0.0)
        assert query.asked.slo_ms is not None, "each has a deadline"
        is_on_time = seen.is_answered and time.monotonic() - due_s <= query.asked.slo_ms * 1e-3
        return HonestEnd(is_on_time, seen.accuracy)

    return list(await asyncio.gather(*(one(*item) for item in enumerate(trace))))


def goodput(ends: Sequence[HonestEnd]) -> float:
    """Return the share that was answered in time."""
    return sum(end.is_on_time for end in ends) / len(ends)


def mean_accuracy(ends: Sequence[HonestEnd]) -> float:
    """Return the mean profiled accuracy of the answers in time."""
    told = [end.accuracy for end in ends if end.is_on_time]
    return float(np.mean(told)) if told else 0.0


def price(
    trace: Sequence[HonestQuery], open_ends: Sequence[HonestEnd], ends: Sequence[HonestEnd]
) -> dict[str, Any]:
    """Return what `ends` cost the same users beside `open_ends`; accuracies are fractions."""
    floors = [query.asked.min_accuracy for query in trace]
    violated = sum(
        end.is_on_time and end.accuracy < floor - 1e-9
        for end, floor in zip(ends, floors, strict=True)
    )
    misses = [sum(not end.is_on_time for end in some) for some in (open_ends, ends)]
    return {
        "goodput": goodput(ends),
        "served_accuracy": mean_accuracy(ends),
        "served_accuracy_lost": mean_accuracy(open_ends) - mean_accuracy(ends),
        "additional_misses": max(0, misses[1] - misses[0]),
        "misses": misses[1],
        "floor_violations": violated,
        "queries": len(trace),
    }
