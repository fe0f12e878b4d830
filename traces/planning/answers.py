"""What else a plan says: headroom, the curve over load, neighbours, routings, the day, the zoo."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from slackfit.simulation.routing import ONE_QUEUE, Routing, parse_routing
from traces.planning.candidates import FleetCandidate
from traces.planning.certificate import query_s
from traces.planning.promise import Promise, impossible_part
from traces.planning.search import Fleet, FleetSearch, Task
from traces.planning.traffic import Traffic
from traces.planning.trial import run_trial

_MOST_FACTOR = 8.0
_FACTOR_PRECISION = 0.005
_DAY_FROM_S = 7200.0
_HOUR_S = 3600.0
LOAD_FACTORS = tuple(k / 10 for k in range(5, 16))
"""Of `load_curve`."""
_COMPARED_ROUTINGS = (ONE_QUEUE, parse_routing("round-robin"))


def headroom(best: Fleet, task: Task) -> dict[str, float]:
    """Return the load factor at which the promise is first missed, and its interval."""

    def kept(factor: float) -> float:
        trial = run_trial(
            best.candidate, best.workers, task.traffic.faster(factor), promise=task.promise,
            devices=task.devices, seed=task.seed,
        )  # fmt: skip
        return 0.0 if not trial.keeps(task.promise) else trial.share_kept(task.promise)

    return first_missed(kept)


def first_missed(kept: Callable[[float], float]) -> dict[str, float]:
    """Return the least load factor at which `kept`, the share of redrawn traces, is 0.

    `low` is the largest that was tried with a share of 0.95; 1 stands for itself.
    """
    shares: dict[float, float] = {1.0: kept(1.0)}
    step, high = 0.04, 1.0
    while shares[high] > 0.0 and high < _MOST_FACTOR:
        high = min(1.0 + step, _MOST_FACTOR)
        shares[high] = kept(high)
        step *= 2
    low = max((f for f, share in shares.items() if share > 0), default=1.0)
    while high - low > _FACTOR_PRECISION and shares[high] == 0.0:
        middle = (low + high) / 2
        shares[middle] = kept(middle)
        low, high = (middle, high) if shares[middle] > 0 else (low, middle)
    sure = [f for f, share in shares.items() if share >= 0.95]
    return {"factor": high, "low": max(sure, default=1.0), "high": high, "tried": len(shares)}


def load_curve(best: Fleet, task: Task) -> list[dict[str, float]]:
    """Return what the fleet comes to at half to one and a half times the load."""
    rows: list[dict[str, float]] = []
    for factor in LOAD_FACTORS:
        traffic = task.traffic.faster(factor)
        trial = run_trial(
            best.candidate, best.workers, traffic, devices=task.devices, seed=task.seed
        )  # fmt: skip
        figures = {"attainment": trial.attainment, "accuracy": trial.accuracy}
        rows.append({"factor": factor, "rate_qps": traffic.rate_qps, **figures})
    return rows


def neighbours(fleets: Sequence[Fleet], best: Fleet, task: Task) -> list[dict[str, Any]]:
    """Return what neighbouring promises would cost with the best candidates."""
    traffic, promise = task.traffic, task.promise
    cases: list[tuple[str, Traffic, Promise]] = [
        ("deadline x0.8", traffic.with_slo(0.8), promise),
        ("deadline x1.25", traffic.with_slo(1.25), promise),
        ("accuracy -0.5 points", traffic, promise._replace(accuracy=promise.accuracy - 0.005)),
        ("accuracy +0.5 points", traffic, promise._replace(accuracy=promise.accuracy + 0.005)),
        ("load -20 %", traffic.faster(0.8), promise),
        ("load +20 %", traffic.faster(1.2), promise),
    ]
    rows: list[dict[str, Any]] = []
    for name, changed, wanted in cases:
        if wanted.accuracy < 0:
            continue
        found = [_nearby(fleet, replace(task, traffic=changed, promise=wanted)) for fleet in fleets]
        costs = [(f.cost, f) for f in found if f is not None]
        if not costs:
            rows.append({"change": name, "workers": None, "cost_per_hour": None, "times": None})
            continue
        cost, fleet = min(costs, key=lambda pair: pair[0])
        rows.append(
            {
                "change": name,
                "workers": fleet.workers,
                "device": fleet.candidate.offer.name,
                "policy": fleet.candidate.policy,
                "cost_per_hour": cost,
                "times": cost / best.cost,
            }
        )
    return rows


def _nearby(fleet: Fleet, task: Task) -> Fleet | None:
    """Return the smallest fleet of a candidate for a task that is near the one it was found for."""
    shortest_s = task.traffic.shortest_slo_s
    if impossible_part(task.promise, fleet.candidate.profile, shortest_s):
        return None
    return FleetSearch(task).fewest(fleet.candidate)


def routings(best: Fleet, asked: Sequence[Routing], task: Task) -> list[dict[str, Any]]:
    """Return how many devices the plan needs under other routings; None: none do."""
    rows: list[dict[str, Any]] = []
    for routing in dict.fromkeys((*_COMPARED_ROUTINGS, *asked)):
        fleet: Fleet | None = best
        if routing != best.candidate.routing:
            fleet = FleetSearch(task).fewest(replace(best.candidate, routing=routing))
        rows.append(
            {
                "routing": str(routing),
                "workers": None if fleet is None else fleet.workers,
                "cost_per_hour": None if fleet is None else fleet.cost,
            }
        )
    return rows


def day(best: Fleet, task: Task) -> list[dict[str, Any]] | None:
    """Return `day_rows` of a trace's hours; None for traces of less than two."""
    traffic = task.traffic
    if traffic.duration_s < _DAY_FROM_S:
        return None
    hours = math.ceil(traffic.duration_s / _HOUR_S - 1e-9)
    edges_s = [min(hour * _HOUR_S, traffic.duration_s) for hour in range(hours + 1)]
    parts = [traffic.between(*pair) for pair in itertools.pairwise(edges_s)]
    return day_rows(best, parts, task)


def day_rows(best: Fleet, parts: Sequence[Traffic], task: Task) -> list[dict[str, Any]]:
    """Return replicas by the hour, of which `parts` have the traffic.

    A device that is wanted in an hour starts `start_up_s` before it. `clairvoyant` is the rate of
    the hour over the rate of a device that serves nothing but full batches of the promised
    accuracy: what nobody can undercut.
    """
    per_device_qps = 1.0 / query_s(best.candidate.profile, task.promise.accuracy)
    needed: list[int] = []
    for part in parts:
        workers = 0
        if len(part.arrival_s):
            search = FleetSearch(replace(task, traffic=part, max_devices=best.workers))
            fleet = search.fewest(best.candidate)
            workers = best.workers if fleet is None else fleet.workers
        needed.append(workers)
    lag = best.candidate.offer.start_up_s
    rows: list[dict[str, Any]] = []
    for hour, part in enumerate(parts):
        following = needed[min(hour + 1, len(parts) - 1)]
        early_s = min(lag, _HOUR_S) * max(following - needed[hour], 0)
        rows.append(
            {
                "hour": hour,
                "rate_qps": part.rate_qps,
                "workers": needed[hour],
                "device_hours": needed[hour] + early_s / _HOUR_S,
                "clairvoyant": math.ceil(part.rate_qps / per_device_qps - 1e-9),
            }
        )
    return rows


def zoo(best: Fleet, task: Task) -> dict[str, Any]:
    """Return what separate models would cost: one of them alone, or several that are loaded."""
    offer = best.candidate.offer
    profile = offer.profile.pareto()
    names = [f"fixed:{s.subnet_id}" for s in profile.subnets if s.accuracy >= task.promise.accuracy]
    search = FleetSearch(task)
    rows: dict[str, Any] = {}
    for label, policies in (("one_model", names), ("switching", ["modelzoo"])):
        fleets = [
            search.fewest(
                FleetCandidate(
                    offer, name, profile.subnet_ids, profile.max_batch_size, best.candidate.routing
                )
            )
            for name in policies
        ]
        kept = [fleet for fleet in fleets if fleet is not None]
        cheapest = min(kept, key=lambda fleet: fleet.cost, default=None)
        rows[label] = None if cheapest is None else {
            "policy": cheapest.candidate.policy,
            "workers": cheapest.workers,
            "cost_per_hour": cheapest.cost,
            "times": cheapest.cost / best.cost,
        }  # fmt: skip
    return rows
