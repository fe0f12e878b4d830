"""`make_plan`: everything that a plan answers, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from slackfit.simulation.devices import AS_PROFILED, DeviceModel
from traces.burstiness import trace_summary
from traces.planning.candidates import DEFAULT_POLICIES, FleetCandidate, candidates
from traces.planning.catalog import Catalog
from traces.planning.certificate import query_s
from traces.planning.finalists import by_seed, kept_on_all
from traces.planning.promise import Promise, impossible_part
from traces.planning.search import MOST_DEVICES, Dropped, Fleet, FleetSearch, Task, Tell
from traces.planning.trial import Traffic, run_trial
from traces.trace import Trace, TraceError

_MOST_FACTOR = 8.0
_FACTOR_PRECISION = 0.005
_DAY_FROM_S = 7200.0
_HOUR_S = 3600.0
_CURVE = tuple(k / 10 for k in range(5, 16))  # load factors


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """How to plan; see the command's options. `draws` are the trace with other seeds, by seed."""

    policies: Sequence[str] = DEFAULT_POLICIES
    max_devices: int | None = None
    confidence: float = 0.95
    devices: DeviceModel = AS_PROFILED
    seed: int = 0
    draws: Mapping[int, Trace] = field(default_factory=dict[int, Trace])


def make_plan(
    trace: Trace,
    slo_s: float | None,
    catalog: Catalog,
    promise: Promise,
    options: PlanOptions,
    tell: Tell = lambda text: None,
) -> dict[str, Any]:
    """Return the plan. `saturated` is true, and no figure of latency is there, if no fleet does.

    Raises TraceError for a trace without arrivals or deadlines, and for a promise that is
    impossible whatever the number of devices.
    """
    traffic = _traffic(trace, slo_s)
    shortest_s = float(np.min(traffic.slo_s))
    faults = [impossible_part(promise, o.profile, shortest_s) for o in catalog.offers]
    if all(faults):
        raise TraceError("; ".join(faults))
    possible = tuple(o for o, fault in zip(catalog.offers, faults, strict=True) if not fault)
    catalog = replace(catalog, offers=possible)
    task = Task(
        traffic, promise, options.confidence, options.max_devices or MOST_DEVICES,
        options.devices, options.seed,
    )  # fmt: skip
    search = FleetSearch(task, tell, programs=True)
    found = search.run(candidates(catalog, options.policies, promise, shortest_s))
    certificates = {o.name: search.certificate(o).to_json() for o in catalog.offers}
    common: dict[str, Any] = {
        "promise": promise._asdict(),
        "confidence": options.confidence,
        "slo_ms": float(np.median(traffic.slo_s)) * 1e3,
        "trace": trace_summary(trace),
        "seed": options.seed,
        "max_devices": options.max_devices,
        "prices": {
            "currency": catalog.currency, "dated": catalog.dated, "source": catalog.source
        },
        "routing": "one queue for all devices",
        "certificates": certificates,
        "dropped": _why_dropped(found.dropped),
    }  # fmt: skip
    draws = {seed: _traffic(drawn, slo_s) for seed, drawn in options.draws.items()}
    fleets = kept_on_all(found.fleets, task, draws, tell) if draws else found.fleets
    if not fleets:
        return {**common, **_saturated(search, catalog, options)}
    best = fleets[0]
    others = [fleet for fleet in fleets[1:] if fleet.candidate != best.candidate]
    tell("headroom, neighbours, zoo")
    return {
        **common,
        **fleet_json(best),
        "certificate_workers": search.certificate(best.candidate.offer).workers,
        "runner_up": fleet_json(others[0]) if others else None,
        "seeds": by_seed(best, task, draws),
        "headroom": _headroom(best, task),
        "load_curve": _load_curve(best, task),
        "neighbours": _neighbours(fleets[:2], best, task),
        "day": _day(best, task),
        "zoo": _zoo(best, task),
        "saturated": False,
        "simulated_by": best.trial.why_python or "compiled",
        "num_trials": search.num_trials,
    }


def fleet_json(fleet: Fleet) -> dict[str, Any]:
    """Return a fleet as plain data."""
    candidate, trial = fleet.candidate, fleet.trial
    attainment, accuracy = trial.intervals()
    return {
        "workers": fleet.workers,
        "device": candidate.offer.name,
        "policy": candidate.policy,
        "subnets": list(candidate.subnet_ids),
        "max_batch": candidate.max_batch,
        "cost_per_hour": fleet.cost,
        "attainment": trial.attainment,
        "attainment_interval": list(attainment),
        "accuracy": trial.accuracy,
        "accuracy_interval": list(accuracy),
    }


def _traffic(trace: Trace, slo_s: float | None) -> Traffic:
    if not len(trace):
        raise TraceError("the trace has no arrivals, there is nothing to plan for")
    if slo_s is not None:
        return Traffic(trace.arrival_s, trace.duration_s, slo_s)
    if trace.slo_s is None:
        raise TraceError("the trace carries no deadlines; give an SLO (--slo-ms)")
    return Traffic(trace.arrival_s, trace.duration_s, trace.slo_s)


def _why_dropped(dropped: Sequence[Dropped]) -> list[dict[str, str]]:
    return [{"candidate": str(d.candidate), "why": d.why} for d in dropped]


def _saturated(search: FleetSearch, catalog: Catalog, options: PlanOptions) -> dict[str, Any]:
    least = min(search.certificate(offer).workers for offer in catalog.offers)
    most = options.max_devices or MOST_DEVICES
    is_proven = all(search.certificate(o).workers > search.task.most(o) for o in catalog.offers)
    why = (
        f"no policy keeps the promise with {most} devices: any needs {least} at least"
        if is_proven
        else f"no candidate keeps the promise with up to {most} devices; any policy needs {least}"
    )
    return {"saturated": True, "why": why, "certificate_workers": least}


def _headroom(best: Fleet, task: Task) -> dict[str, float]:
    """Return the load factor at which the promise is first missed, and its interval."""

    def kept(factor: float) -> float:
        trial = run_trial(
            best.candidate, best.workers, task.traffic.faster(factor), promise=task.promise,
            devices=task.devices, seed=task.seed,
        )  # fmt: skip
        return 0.0 if not trial.keeps(task.promise) else trial.share_kept(task.promise)

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


def _load_curve(best: Fleet, task: Task) -> list[dict[str, float]]:
    """Return what the fleet comes to at half to one and a half times the load."""
    rows: list[dict[str, float]] = []
    for factor in _CURVE:
        traffic = task.traffic.faster(factor)
        trial = run_trial(
            best.candidate, best.workers, traffic, devices=task.devices, seed=task.seed
        )  # fmt: skip
        figures = {"attainment": trial.attainment, "accuracy": trial.accuracy}
        rows.append({"factor": factor, "rate_qps": traffic.rate_qps, **figures})
    return rows


def _neighbours(fleets: Sequence[Fleet], best: Fleet, task: Task) -> list[dict[str, Any]]:
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
    shortest_s = float(np.min(task.traffic.slo_s))
    if impossible_part(task.promise, fleet.candidate.profile, shortest_s):
        return None
    return FleetSearch(task).fewest(fleet.candidate)


def _day(best: Fleet, task: Task) -> list[dict[str, Any]] | None:
    """Return replicas by the hour; None for traces of less than two hours.

    A device that is wanted in an hour starts `start_up_s` before it. `clairvoyant` is the rate of
    the hour over the rate of a device that serves nothing but full batches of the promised
    accuracy: what nobody can undercut.
    """
    traffic = task.traffic
    if traffic.duration_s < _DAY_FROM_S:
        return None
    per_device_qps = 1.0 / query_s(best.candidate.profile, task.promise.accuracy)
    hours = math.ceil(traffic.duration_s / _HOUR_S - 1e-9)
    needed: list[int] = []
    parts: list[Traffic] = []
    for hour in range(hours):
        end_s = min((hour + 1) * _HOUR_S, traffic.duration_s)
        part = traffic.between(hour * _HOUR_S, end_s)
        parts.append(part)
        fleet = None
        if len(part.arrival_s):
            search = FleetSearch(replace(task, traffic=part, max_devices=best.workers))
            fleet = search.fewest(best.candidate)
        needed.append(
            best.workers if fleet is None and len(part.arrival_s) else fleet.workers if fleet else 0
        )
    lag = best.candidate.offer.start_up_s
    rows: list[dict[str, Any]] = []
    for hour, part in enumerate(parts):
        following = needed[hour + 1] if hour + 1 < hours else needed[hour]
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


def _zoo(best: Fleet, task: Task) -> dict[str, Any]:
    """Return what separate models would cost: one of them alone, or several that are loaded."""
    offer = best.candidate.offer
    profile = offer.profile.pareto()
    names = [f"fixed:{s.subnet_id}" for s in profile.subnets if s.accuracy >= task.promise.accuracy]
    search = FleetSearch(task)
    rows: dict[str, Any] = {}
    for label, policies in (("one_model", names), ("switching", ["modelzoo"])):
        fleets = [
            search.fewest(FleetCandidate(offer, name, profile.subnet_ids, profile.max_batch_size))
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
