"""Small catalogues in which every fleet can be tried: is the one that was found the cheapest?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from serve.bench.rows import Row, Tell, row
from slackfit.profile import LatencyProfile, SubnetProfile
from traces.planning.candidates import candidates
from traces.planning.catalog import Catalog, DeviceOffer
from traces.planning.promise import Promise
from traces.planning.search import FleetSearch, Task
from traces.planning.traffic import Traffic
from traces.planning.trial import run_trial

NUM_CATALOGS = 200
_ARRIVALS = 1500


class SmallTask(NamedTuple):
    """A catalogue, traffic, a promise and policies, drawn from a seed."""

    catalog: Catalog
    traffic: Traffic
    promise: Promise
    policies: list[str]


class Compared(NamedTuple):
    """The price of the plan and of the cheapest fleet there is; None: no fleet keeps the promise.

    `keeps` is whether the planned fleet, run again, keeps the promise, and is not below its
    certificate; true where there is none.
    """

    planned: float | None
    cheapest: float | None
    keeps: bool


def small_task(seed: int) -> SmallTask:
    """Return one to three devices, of which there are at most six each, and 1,500 arrivals."""
    rng = np.random.default_rng([seed, 8])
    offers = tuple(
        DeviceOffer(
            name=f"d{i}", profile=_small_profile(rng, f"d{i}"),
            price_per_hour=float(rng.integers(1, 9)), max_devices=int(rng.integers(2, 7)),
        )
        for i in range(rng.integers(1, 4))
    )  # fmt: skip
    capacity_qps = max(offer.profile.fastest().capacity_qps for offer in offers)
    rate_qps = capacity_qps * rng.uniform(0.3, 3.0)
    shape = float(rng.choice([0.25, 1.0]))
    arrival_s = np.cumsum(rng.gamma(shape, 1 / (shape * rate_qps), _ARRIVALS))
    slo_s = float(rng.uniform(0.015, 0.06))
    accuracies = [s.accuracy for offer in offers for s in offer.profile.subnets]
    promise = Promise(
        float(rng.choice([0.9, 0.99, 0.999])), float(rng.uniform(0.55, np.median(accuracies)))
    )
    traffic = Traffic(arrival_s, float(arrival_s[-1]) + 1e-9, slo_s)
    policies = ["drainfit", "slackfit"] if rng.random() < 0.7 else ["slackfit@num_buckets=40"]
    return SmallTask(Catalog(offers=offers), traffic, promise, policies)


def compared(task: SmallTask) -> Compared:
    """Search a task, and try every fleet of every candidate."""
    catalog, traffic, promise, policies = task
    tried = candidates(catalog, policies, promise, float(np.min(traffic.slo_s)))
    search = FleetSearch(Task(traffic, promise))
    fleets = search.run(tried).fleets
    cheapest = min(
        (
            candidate.cost(count)
            for candidate in tried
            for count in range(1, (candidate.offer.max_devices or 0) + 1)
            if run_trial(candidate, count, traffic).keeps(promise)
        ),
        default=None,
    )
    if not fleets:
        return Compared(None, cheapest, True)
    best = fleets[0]
    keeps = run_trial(best.candidate, best.workers, traffic).keeps(promise)
    is_certified = best.workers >= search.certificate(best.candidate.offer).workers
    return Compared(best.cost, cheapest, keeps and is_certified)


def rows(seeds: Iterable[int], tell: Tell) -> list[Row]:
    """Return how many catalogues have the same cheapest fleet, and how many plans miss."""
    same = missed = total = 0
    for seed in seeds:
        found = compared(small_task(seed))
        total += 1
        same += found.planned == found.cheapest
        missed += not found.keeps
        if total % 50 == 0:
            tell(f"plan: {total} catalogues")
    asked = total - total // 100
    return [
        row("policies/plan/catalogs_same_cheapest", same, "count",
            f">= {asked}; of {total} drawn catalogues, against every fleet there is"),
        row("policies/plan/catalogs_promise_missed", missed, "count",
            "0; planned fleets that miss the promise on the planned trace"),
    ]  # fmt: skip


def _small_profile(rng: np.random.Generator, name: str) -> LatencyProfile:
    accuracies = np.sort(rng.choice(np.arange(0.6, 0.95, 0.05), rng.integers(2, 5), replace=False))
    base_s = np.sort(rng.uniform(1e-3, 6e-3, len(accuracies)))
    subnets = tuple(
        SubnetProfile(
            subnet_id=f"s{i}", accuracy=float(accuracy), macs=1,
            latency_s={"p50": tuple(float(t * b**0.6) for b in (1, 2, 4, 8))},
        )
        for i, (accuracy, t) in enumerate(zip(accuracies, base_s, strict=True))
    )  # fmt: skip
    return LatencyProfile(
        name=name, device="none", dtype="none", batch_sizes=(1, 2, 4, 8), subnets=subnets
    )
