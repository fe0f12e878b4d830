"""`make_stream_plan`: the cheapest fleet for a promise to readers of streams.

Each candidate (device, policy, routing) gets the fewest devices that keep the promise, by galloping
up from the certificate and bisecting. Trials run the scheduler that serves, in Python: there is no
compiled form of streams, so a trace of some thousand streams is what this is for.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from slackfit.metrics import as_good
from slackfit.streams.iteration_cost import IterationCosts
from traces.burstiness import trace_summary
from traces.planning.answers import LOAD_FACTORS, first_missed
from traces.planning.catalog import Catalog, DeviceOffer
from traces.planning.planner import allowed_devices, bound_of
from traces.planning.search import MOST_DEVICES, Tell
from traces.planning.streams.stream_alone import impossible_streams
from traces.planning.streams.stream_promise import StreamPromise
from traces.planning.streams.stream_search import StreamFleet, StreamPlanOptions, StreamSearch
from traces.planning.streams.stream_trial import StreamCandidate
from traces.simulation.stream_simulation import stream_queries, stream_scheduler
from traces.trace import Trace, TraceError


def make_stream_plan(
    trace: Trace,
    catalog: Catalog,
    promise: StreamPromise,
    options: StreamPlanOptions,
    tell: Tell = lambda text: None,
) -> dict[str, Any]:
    """Return the plan, with the keys of `make_plan` as far as streams have them.

    `saturated` is true, and no time is there, if no fleet does. Raises TraceError for a trace
    without arrivals or token counts and for a promise that no number of devices keeps, ProfileError
    for a profile without iterations.
    """
    if not len(trace):
        raise TraceError("the trace has no arrivals, there is nothing to plan for")
    tried = _candidates(catalog, options)
    stream_queries(trace, promise.slo)  # what can't be is known before anything runs
    search = StreamSearch(trace, promise, options)
    faults = _faults(catalog, search)
    fleets, dropped = _fleets(search, tried, faults, tell)
    possible = [offer for offer in catalog.offers if not faults[offer.name]]
    least = {offer.name: search.certificate(offer) for offer in possible}
    common: dict[str, Any] = {
        "kind": "streams",
        "promise": promise.to_json(),
        "confidence": options.confidence,
        "slo_ms": promise.first_output_s * 1e3,
        "trace": trace_summary(trace),
        "seed": options.served.seed,
        "max_devices": options.max_devices,
        "prices": catalog.prices_json(),
        "certificates": {
            n: {"mean": w, "windows": 1, "program": 1, "workers": w} for n, w in least.items()
        },
        "certificate_cost": min(o.price_per_hour * least[o.name] for o in possible),
        "certificate_of": bound_of(catalog),
        "mixed": False,
        "dropped": dropped,
    }
    if not fleets:
        return {**common, **_saturated(catalog, least, options)}
    tell("headroom, neighbours")
    return {**common, **_answers(fleets, search)}


def _candidates(catalog: Catalog, options: StreamPlanOptions) -> list[StreamCandidate]:
    """Return all that is to be tried. Raises ProfileError, ValueError for what can't be."""
    tried = [
        StreamCandidate(offer, policy, routing)
        for offer, policy, routing in itertools.product(
            catalog.offers, options.policies, options.routings
        )
    ]
    for candidate in tried:
        stream_scheduler(candidate.policy, candidate.costs, options.served)
    return tried


def _faults(catalog: Catalog, search: StreamSearch) -> dict[str, str]:
    """Return, by device, why no number of it keeps the promise; empty where one may.

    Raises TraceError where no device may.
    """
    faults = {
        o.name: impossible_streams(
            IterationCosts.of(o.profile), search.trace, search.promise, o.name
        )
        for o in catalog.offers
    }
    if all(faults.values()):
        raise TraceError("; ".join(faults.values()))
    return faults


def _fleets(
    search: StreamSearch,
    tried: Sequence[StreamCandidate],
    faults: Mapping[str, str],
    tell: Tell,
) -> tuple[list[StreamFleet], list[dict[str, str]]]:
    """Return the fleets that keep the promise, cheapest first, and which candidates have none."""
    fleets: list[StreamFleet] = []
    dropped: list[dict[str, str]] = []
    for candidate in tried:
        best = min((fleet.cost for fleet in fleets), default=None)
        why = faults[candidate.offer.name]
        fleet = None if why else search.fewest(candidate, below=best)
        if fleet is not None:
            tell(f"{candidate}: {fleet.workers} devices, {fleet.cost:g} an hour")
            fleets.append(fleet)
            continue
        if not why and best is None:
            why = f"{search.most(candidate)} do not do"
        dropped.append(
            {"candidate": str(candidate), "why": why or f"not for less than {best:g} an hour"}
        )
    fleets.sort(key=lambda f: (f.cost, -f.trial.figures[2], str(f.candidate)))
    return fleets, dropped


def _saturated(
    catalog: Catalog, least: Mapping[str, int], options: StreamPlanOptions
) -> dict[str, Any]:
    """Return what a plan says where no fleet keeps the promise; `least` as certified, by name."""
    fewest, is_one_type = min(least.values()), len(catalog.offers) == 1
    allowed = allowed_devices(options.max_devices, catalog.offers)
    most = {o.name: _most(options, o) for o in catalog.offers}
    if is_one_type and all(count > most[name] for name, count in least.items()):
        why = f"no policy keeps the promise with {allowed}: any needs {fewest} at least"
    else:
        of_one_type = "" if is_one_type else " of one type"
        why = (
            f"no candidate keeps the promise with up to {allowed}; any policy needs "
            f"{fewest}{of_one_type}"
        )
    return {"saturated": True, "why": why, "certificate_workers": fewest}


def _answers(fleets: Sequence[StreamFleet], search: StreamSearch) -> dict[str, Any]:
    """Return the first fleet, which is the plan, and what else is asked about it."""
    best = fleets[0]
    return {
        **_fleet_json(best),
        "certificate_workers": search.certificate(best.candidate.offer),
        "answers_of": "the whole trace",
        "runner_up": _fleet_json(fleets[1]) if len(fleets) > 1 else None,
        "seeds": _by_seed(best, search),
        "headroom": first_missed(lambda factor: search.share_at(best, factor)),
        "load_curve": [search.at_load(best, factor) for factor in LOAD_FACTORS[::2]],
        "neighbours": _neighbours(best, search),
        "routings": _routings(best, search),
        "day": None,
        "zoo": {"one_model": _one_width(best, search), "switching": None},
        "saturated": False,
        "simulated_by": "streams have no compiled form",
        "num_trials": search.num_trials,
    }


def _most(options: StreamPlanOptions, offer: DeviceOffer) -> int:
    return min(options.max_devices or MOST_DEVICES, offer.max_devices or MOST_DEVICES)


def _fleet_json(fleet: StreamFleet) -> dict[str, Any]:
    candidate = fleet.candidate
    return {
        "fleet": str(fleet),
        "workers": fleet.workers,
        "device": candidate.offer.name,
        "policy": candidate.policy,
        "routing": candidate.routing,
        "subnets": list(candidate.costs.subnet_ids),
        "cost_per_hour": fleet.cost,
        **fleet.trial.to_json(),
    }


def _by_seed(best: StreamFleet, search: StreamSearch) -> list[dict[str, Any]]:
    options = search.options
    rows: list[dict[str, Any]] = []
    for seed, trace in {options.served.seed: search.trace, **options.draws}.items():
        trial = search.run(best.candidate, best.workers, trace)
        attainment, fluidity, accuracy = trial.figures
        rows.append(
            {"seed": seed, "attainment": attainment, "fluidity": fluidity, "accuracy": accuracy}
        )
    return rows


def _neighbours(best: StreamFleet, search: StreamSearch) -> list[dict[str, Any]]:
    """Return what neighbouring promises would cost with the best candidate."""
    promise, trace = search.promise, search.trace
    first_s, period_s = promise.first_output_s, promise.period_s
    cases = [
        ("first output x0.8", promise._replace(first_output_s=first_s * 0.8), 1.0),
        ("first output x1.25", promise._replace(first_output_s=first_s * 1.25), 1.0),
        ("period x0.8", promise._replace(period_s=period_s * 0.8), 1.0),
        ("period x1.25", promise._replace(period_s=period_s * 1.25), 1.0),
        ("load -20 %", promise, 0.8),
        ("load +20 %", promise, 1.2),
    ]
    rows: list[dict[str, Any]] = []
    options = replace(search.options, draws={})
    for name, wanted, factor in cases:
        changed = trace.rescale_rate(trace.rate_qps * factor)
        nearby = StreamSearch(changed, wanted, options)
        fleet = None
        candidate = best.candidate
        if not impossible_streams(candidate.costs, changed, wanted, candidate.offer.name):
            fleet = nearby.fewest(best.candidate)
        search.num_trials += nearby.num_trials
        rows.append({"change": name, **_price(fleet, best)})
    return rows


def _routings(best: StreamFleet, search: StreamSearch) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for routing in search.options.routings:
        fleet: StreamFleet | None = best
        if routing != best.candidate.routing:
            fleet = search.fewest(replace(best.candidate, routing=routing))
        rows.append({"routing": routing, **_price(fleet, best)})
    return rows


def _one_width(best: StreamFleet, search: StreamSearch) -> dict[str, Any] | None:
    """Return the cheapest fleet of a decoder of one width, as good as promised."""
    found = [
        search.fewest(replace(best.candidate, policy=f"fixed:{rung.subnet_id}"))
        for rung in best.candidate.costs.rungs
        if rung.quality >= as_good(search.promise.accuracy)
    ]
    kept = [fleet for fleet in found if fleet is not None]
    if not kept:
        return None
    cheapest = min(kept, key=lambda fleet: fleet.cost)
    return {"policy": cheapest.candidate.policy, **_price(cheapest, best)}


def _price(fleet: StreamFleet | None, best: StreamFleet) -> dict[str, Any]:
    if fleet is None:
        return {"workers": None, "cost_per_hour": None, "times": None}
    return {
        "fleet": str(fleet),
        "workers": fleet.workers,
        "device": fleet.candidate.offer.name,
        "policy": fleet.candidate.policy,
        "cost_per_hour": fleet.cost,
        "times": fleet.cost / best.cost,
    }
