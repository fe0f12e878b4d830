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
from traces.planning.candidates import DEFAULT_POLICIES, FleetCandidate, candidates
from traces.planning.catalog import Catalog, DeviceOffer
from traces.planning.finalists import by_seed, kept_on_all
from traces.planning.mixed_search import usable_offers, with_mixed
from traces.planning.possible import impossible_part
from traces.planning.promise import Promise
from traces.planning.search import MOST_DEVICES, Dropped, Fleet, FleetSearch, Task, Tell
from traces.planning.traffic import Traffic, traffic_of
from traces.trace import Trace, TraceError

EVERY_FLEET, ONE_TYPE = "every fleet", "fleets of one type"
"""Of `certificate_of`: which fleets `certificate_cost` is a bound of."""


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
    mixed: bool = True


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
    alone = possible_offers(catalog, promise, traffic)
    task = Task(
        traffic, promise, options.confidence, options.max_devices or MOST_DEVICES,
        options.devices, options.seed,
    )  # fmt: skip
    search = FleetSearch(task, tell, programs=True)
    found = search.run(
        candidates(alone, options.policies, promise, traffic.slo_s, options.routings)
    )
    together = usable_offers(catalog.offers, search)
    is_mixed = options.mixed and len(together) > 1
    if is_mixed:
        found = with_mixed(search, found, together, options.policies[0], tell)
    least = _LeastFleet.of(search, alone.offers, together)
    certificates = {o.name: search.certificate(o).to_json() for o in alone.offers}
    common = common_json(
        promise, options, catalog, float(np.median(traffic.slo_s)), trace_summary(trace),
        certificates, found.dropped,
    )  # fmt: skip
    common |= {
        "certificate_cost": least.cost, "certificate_of": EVERY_FLEET, "mixed": is_mixed
    }  # fmt: skip
    draws = {seed: traffic_of(drawn, slo_s, promise) for seed, drawn in options.draws.items()}
    fleets = kept_on_all(found.fleets, task, draws, tell) if draws else found.fleets
    if not fleets:
        return {**common, **_saturated(least, options, alone.offers)}
    best = fleets[0]
    others = [fleet for fleet in fleets[1:] if fleet.candidate != best.candidate]
    tell("headroom, neighbours, zoo")
    return {
        **common,
        **fleet_json(best),
        "certificate_workers": search.least(best.candidate) + best.candidate.num_beside,
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


def possible_offers(catalog: Catalog, promise: Promise, traffic: Traffic) -> Catalog:
    """Return the offers with which alone the promise is not impossible.

    Raises TraceError where there is none.
    """
    faults = [impossible_part(promise, offer.profile, traffic) for offer in catalog.offers]
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
        "prices": catalog.prices_json(),
        "certificates": certificates,
        "dropped": [d._asdict() for d in dropped],
    }


def bound_of(catalog: Catalog) -> str:
    """Return which fleets a bound of one type of device holds for: all, where there is no other."""
    return EVERY_FLEET if len(catalog.offers) == 1 else ONE_TYPE


def fleet_json(fleet: Fleet) -> dict[str, Any]:
    """Return a fleet as plain data; `pools` are its types of device, one or two."""
    candidate, trial = fleet.candidate, fleet.trial
    attainment, accuracy = trial.intervals()
    pools = _pools(candidate, fleet.workers)
    return {
        "fleet": str(fleet),
        "workers": fleet.total,
        "device": fleet.device,
        "policy": " + ".join(dict.fromkeys(pool["policy"] for pool in pools)),
        "subnets": list(candidate.subnet_ids),
        "max_batch": candidate.max_batch,
        "routing": str(candidate.routing),
        "pools": pools,
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


def _pools(candidate: FleetCandidate, workers: int) -> list[dict[str, Any]]:
    share = candidate.share(workers)
    numbers = ((workers, share), (candidate.num_beside, 1.0 - share))
    return [
        {
            "device": part.offer.name,
            "workers": number,
            "share": of_queries,
            "policy": part.policy,
            "subnets": list(part.subnet_ids),
            "max_batch": part.max_batch,
        }
        for part, (number, of_queries) in zip(candidate.parts, numbers, strict=False)
    ]


@dataclass(frozen=True)
class _LeastFleet:
    """What no fleet undercuts: its price an hour and its devices; within `max_devices`, if any."""

    cost: float
    workers: int
    is_within_max: bool

    @staticmethod
    def of(
        search: FleetSearch, alone: Sequence[DeviceOffer], together: Sequence[DeviceOffer]
    ) -> _LeastFleet:
        """Bound fleets of one type of `alone`, and with more than one `together` mixed ones."""
        certificates = [search.certificate(offer).workers for offer in alone]
        most = [min(search.task.max_devices, o.max_devices or MOST_DEVICES) for o in alone]
        is_within = any(n <= m for n, m in zip(certificates, most, strict=True))
        cost = min(o.price_per_hour * n for o, n in zip(alone, certificates, strict=True))
        workers = min(certificates)
        if len(together) > 1:
            bound = search.bound(together)
            unbounded = [MOST_DEVICES] * len(together)
            total = MOST_DEVICES * len(together)
            cheapest, fewest = bound.cheapest(unbounded, total), bound.fewest(unbounded, total)
            cost = min(cost, cost if cheapest is None else bound.cost(cheapest))
            workers = min(workers, workers if fewest is None else sum(fewest))
            own = [offer.max_devices or MOST_DEVICES for offer in together]
            is_within = is_within or bound.fewest(own, search.task.max_devices) is not None
        return _LeastFleet(cost, workers, is_within)


def _saturated(
    least: _LeastFleet, options: PlanOptions, offers: Sequence[DeviceOffer]
) -> dict[str, Any]:
    allowed = allowed_devices(options.max_devices, offers)
    why = (
        f"no candidate keeps the promise with up to {allowed}; any policy needs {least.workers}"
        if least.is_within_max
        else f"no policy keeps the promise with {allowed}: any needs {least.workers} at least"
    )
    return {"saturated": True, "why": why, "certificate_workers": least.workers}


def allowed_devices(max_devices: int | None, offers: Sequence[DeviceOffer]) -> str:
    """Return how many devices there may be, in words: as asked, and as the catalogue has them."""
    most = max_devices or MOST_DEVICES
    few = [f"{o.max_devices} x {o.name}" for o in offers if (o.max_devices or most) < most]
    if few and len(few) == len(offers):
        return f"the catalogue's {', '.join(few)}"
    return f"{most} devices" + (f" and the catalogue's {', '.join(few)}" if few else "")


def _runner_up(others: Sequence[Fleet], best: Fleet) -> dict[str, Any] | None:
    """Return the next best fleet, and its figures less those of the best on the same redraws."""
    if not others:
        return None
    attainment, accuracy = others[0].trial.less(best.trial)
    less = {"attainment": list(attainment), "accuracy": list(accuracy)}
    return {**fleet_json(others[0]), "less_best_interval": less}
