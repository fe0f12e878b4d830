"""What else a plan says: headroom, the curve over load, neighbours, routings, the day, the zoo."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from slackfit.metrics import as_good
from slackfit.simulation.routing import ONE_QUEUE, ROUND_ROBIN, Routing
from traces.planning.candidates import FleetCandidate
from traces.planning.certificate import query_s
from traces.planning.possible import impossible_part
from traces.planning.promise import Promise
from traces.planning.search import Fleet, FleetSearch, Task
from traces.planning.traffic import Traffic
from traces.planning.trial import run_trial

_MOST_FACTOR = 8.0
_FACTOR_PRECISION = 0.005
_MOST_LESS = 0.7  # of the load
_SURE = 0.95
_DAY_FROM_S = 7200.0
_HOUR_S = 3600.0
LOAD_FACTORS = tuple(k / 10 for k in range(5, 16))
"""Of `load_curve`."""
_COMPARED_ROUTINGS = (ONE_QUEUE, ROUND_ROBIN)


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

    `low` is the largest that was tried with a share of 0.95, there and at all lower ones; 0: none
    of a few down to about a third of the load was.
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
    lower, step = 1.0, 0.04
    while shares[lower] < _SURE and step < _MOST_LESS:
        lower = 1.0 - step
        shares[lower] = kept(lower)
        step *= 2
    sure = list(itertools.takewhile(lambda factor: shares[factor] >= _SURE, sorted(shares)))
    return {
        "factor": high, "low": sure[-1] if sure else 0.0, "high": high, "tried": len(shares)
    }  # fmt: skip


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
                "fleet": str(fleet),
                "workers": fleet.total,
                "device": fleet.device,
                "policy": fleet.candidate.policy,
                "cost_per_hour": cost,
                "times": cost / best.cost,
            }
        )
    return rows


def _nearby(fleet: Fleet, task: Task) -> Fleet | None:
    """Return the smallest fleet of a candidate for a task that is near the one it was found for."""
    candidate = fleet.candidate
    # Of two types the search itself knows what is impossible.
    if candidate.beside is None and impossible_part(task.promise, candidate.profile, task.traffic):
        return None
    return FleetSearch(task).fewest(candidate)


def routings(best: Fleet, asked: Sequence[Routing], task: Task) -> list[dict[str, Any]]:
    """Return how many devices the plan needs under other routings; None: none do."""
    rows: list[dict[str, Any]] = []
    # Two types have queues of their own: a router that looks at all of them is not simulated.
    wanted = asked if best.candidate.beside is None else ()
    for routing in dict.fromkeys((*_COMPARED_ROUTINGS, *wanted)):
        fleet: Fleet | None = best
        if routing != best.candidate.routing:
            fleet = FleetSearch(task).fewest(best.candidate.routed(routing))
        rows.append(
            {
                "routing": str(routing),
                "workers": None if fleet is None else fleet.total,
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
    accuracy: what nobody can undercut. Of a fleet of two types the dearer devices stay all day.
    """
    always = best.candidate.num_beside
    needed: list[int] = []
    for part in parts:
        workers = 0
        if len(part.arrival_s):
            search = FleetSearch(replace(task, traffic=part, max_devices=best.total))
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
                "workers": needed[hour] + always,
                "device_hours": needed[hour] + always + early_s / _HOUR_S,
                "clairvoyant": _clairvoyant(best, part, task),
            }
        )
    return rows


def _clairvoyant(best: Fleet, part: Traffic, task: Task) -> int:
    """Return how few devices could serve an hour, whatever the policy."""
    candidate = best.candidate
    if candidate.beside is None:
        one_s = query_s(candidate.profile, task.promise.accuracy)
        return math.ceil(part.rate_qps * one_s - 1e-9)
    if not len(part.arrival_s):
        return candidate.num_beside
    return candidate.num_beside + FleetSearch(replace(task, traffic=part)).least(candidate)


def zoo(best: Fleet, task: Task) -> dict[str, Any]:
    """Return what separate models would cost: one of them alone, or several that are loaded.

    On the fleet's own type of device; of two types on the cheaper of those that do alone.
    """
    search = FleetSearch(task)
    rows: dict[str, Any] = {}
    for label in ("one_model", "switching"):
        fleets = [search.fewest(candidate) for candidate in _separate(best, task, label)]
        kept = [fleet for fleet in fleets if fleet is not None]
        cheapest = min(kept, key=lambda fleet: fleet.cost, default=None)
        rows[label] = None if cheapest is None else {
            "policy": cheapest.candidate.policy,
            "workers": cheapest.workers,
            "cost_per_hour": cheapest.cost,
            "times": cheapest.cost / best.cost,
        }  # fmt: skip
    return rows


def _separate(best: Fleet, task: Task, label: str) -> Iterator[FleetCandidate]:
    """Yield the candidates of separate models."""
    for part in best.candidate.parts:
        profile = part.offer.profile.pareto()
        if impossible_part(task.promise, profile, task.traffic):
            continue
        least = as_good(task.promise.accuracy)
        accurate = (s.subnet_id for s in profile.subnets if s.accuracy >= least)
        names = [f"fixed:{i}" for i in accurate] if label == "one_model" else ["modelzoo"]
        for name in names:
            yield FleetCandidate(
                part.offer, name, profile.subnet_ids, profile.max_batch_size, part.routing
            )
