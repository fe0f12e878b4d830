"""`make_plan`: everything that a plan answers, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from slackfit.simulation.devices import AS_PROFILED, DeviceModel
from slackfit.simulation.routing import ONE_QUEUE, Routing
from traces.burstiness import trace_summary
from traces.planning.answers import day, headroom, load_curve, neighbours, routings, zoo
from traces.planning.candidates import DEFAULT_POLICIES, candidates
from traces.planning.catalog import Catalog
from traces.planning.finalists import by_seed, kept_on_all
from traces.planning.promise import Promise, impossible_part
from traces.planning.search import MOST_DEVICES, Dropped, Fleet, FleetSearch, Task, Tell
from traces.planning.traffic import traffic_of
from traces.trace import Trace, TraceError


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """How to plan; see the command's options. `draws` are the trace with other seeds, by seed."""

    policies: Sequence[str] = DEFAULT_POLICIES
    routings: Sequence[Routing] = (ONE_QUEUE,)
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
    traffic = traffic_of(trace, slo_s, promise)
    shortest_s = traffic.shortest_slo_s
    catalog = possible_offers(catalog, promise, shortest_s)
    task = Task(
        traffic, promise, options.confidence, options.max_devices or MOST_DEVICES,
        options.devices, options.seed,
    )  # fmt: skip
    search = FleetSearch(task, tell, programs=True)
    found = search.run(candidates(catalog, options.policies, promise, shortest_s, options.routings))
    certificates = {o.name: search.certificate(o).to_json() for o in catalog.offers}
    common = common_json(
        promise, options, catalog, float(np.median(traffic.slo_s)), trace_summary(trace),
        certificates, found.dropped,
    )  # fmt: skip
    draws = {seed: traffic_of(drawn, slo_s, promise) for seed, drawn in options.draws.items()}
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
        "answers_of": "the whole trace",
        "runner_up": _runner_up(others, best),
        "seeds": by_seed(best, task, draws),
        "headroom": headroom(best, task),
        "load_curve": load_curve(best, task),
        "neighbours": neighbours(fleets[:2], best, task),
        "routings": routings(best, options.routings, task),
        "day": day(best, task),
        "zoo": zoo(best, task),
        "saturated": False,
        "simulated_by": best.trial.why_python or "compiled",
        "num_trials": search.num_trials,
    }


def possible_offers(catalog: Catalog, promise: Promise, shortest_s: float) -> Catalog:
    """Return the offers with which the promise is not impossible. Raises TraceError for none."""
    faults = [impossible_part(promise, offer.profile, shortest_s) for offer in catalog.offers]
    if all(faults):
        raise TraceError("; ".join(faults))
    possible = (o for o, fault in zip(catalog.offers, faults, strict=True) if not fault)
    return replace(catalog, offers=tuple(possible))


def common_json(
    promise: Promise,
    options: PlanOptions,
    catalog: Catalog,
    slo_s: float,
    trace: Mapping[str, Any],
    certificates: Mapping[str, Any],
    dropped: Sequence[Dropped],
) -> dict[str, Any]:
    """Return what a plan says whether or not a fleet was found."""
    return {
        "promise": promise.to_json(),
        "confidence": options.confidence,
        "slo_ms": slo_s * 1e3,
        "trace": trace,
        "seed": options.seed,
        "max_devices": options.max_devices,
        "prices": {
            "currency": catalog.currency, "dated": catalog.dated, "source": catalog.source
        },
        "certificates": certificates,
        "dropped": _why_dropped(dropped),
    }  # fmt: skip


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
        "routing": str(candidate.routing),
        "cost_per_hour": fleet.cost,
        "attainment": trial.attainment,
        "attainment_interval": list(attainment),
        "accuracy": trial.accuracy,
        "accuracy_interval": list(accuracy),
        "groups": {
            name: {"attainment": counts.attainment, "accuracy": counts.accuracy}
            for name, counts in trial.groups.items()
        },
    }


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


def _runner_up(others: Sequence[Fleet], best: Fleet) -> dict[str, Any] | None:
    """Return the next best fleet, and its figures less those of the best on the same redraws."""
    if not others:
        return None
    attainment, accuracy = others[0].trial.less(best.trial)
    less = {"attainment": list(attainment), "accuracy": list(accuracy)}
    return {**fleet_json(others[0]), "less_best_interval": less}
