"""`StreamPlanRequest`: what the options of `supernet plan` ask for with a profile of iterations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from slackfit.scheduling.streams.stream_scheduler import KV_TOKENS, MAX_RUNNING
from slackfit.simulation.simulate_streams import STREAM_ROUTINGS
from slackfit.streams.iteration_cost import has_iterations
from traces.planning.catalog import Catalog
from traces.planning.search import Tell
from traces.planning.streams.stream_plan import make_stream_plan
from traces.planning.streams.stream_promise import StreamPromise, parse_stream_promise
from traces.planning.streams.stream_search import DEFAULT_STREAM_POLICIES, StreamPlanOptions
from traces.simulation.stream_simulation import StreamOptions, fitted_trace
from traces.trace import Trace, TraceError

_OF_BATCHES = ("slo_ms", "noise", "overhead_ms", "stream", "processes", "verify")
_OF_STREAMS = {
    "thin": 1.0, "length_scale": 1.0, "lengths": None, "kv_tokens": None, "max_running": None,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StreamPlanRequest:
    """A plan to make for a promise to readers of streams."""

    trace: Trace
    catalog: Catalog
    promise: StreamPromise
    options: StreamPlanOptions
    tell: Tell

    def plan(self) -> dict[str, Any]:
        """Make it. Raises TraceError and ProfileError for what can't be."""
        return make_stream_plan(self.trace, self.catalog, self.promise, self.options, self.tell)


def is_of_streams(catalog: Catalog, given: Mapping[str, Any]) -> bool:
    """Whether the devices serve streams. Raises TraceError for some that do and some that do not.

    Also for options of the command, by name in `given`, that go with the other kind.
    """
    kinds = {has_iterations(offer.profile) for offer in catalog.offers}
    if len(kinds) > 1:
        raise TraceError(
            "some of the profiles have the cost of iterations, for streams, and some have not; "
            "plan for one kind at a time"
        )
    is_streams = True in kinds
    wrong = [name for name in _OF_BATCHES if is_streams and given[name]]
    wrong += [
        name for name, usual in _OF_STREAMS.items() if not is_streams and given[name] != usual
    ]
    if wrong:
        kind = "has iterations, so streams" if is_streams else "has no iterations, so batches"
        options = ", ".join("--" + name.replace("_", "-") for name in wrong)
        name = catalog.offers[0].profile.name
        raise TraceError(f"profile {name!r} {kind} are planned for, without {options}")
    return is_streams


def read_stream_request(
    given: Mapping[str, Any], catalog: Catalog, tell: Tell
) -> StreamPlanRequest:
    """Return what the command's parameters, by name, ask for. Raises TraceError for what can't be.

    Draws have other seeds: of a generator's arrivals, of the thinning and of drawn lengths.
    """
    promise = parse_stream_promise(given["slo"])
    first = given["seed"]
    traces = [fitted_trace({**given, "seed": first + k}) for k in range(given["seeds"])]
    trace = traces[0]
    for drawn in traces[1:]:
        is_same = np.array_equal(drawn.arrival_s, trace.arrival_s)
        if is_same and given["lengths"] is None:
            raise TraceError(f"{given['trace']!r} is the same with every seed; leave --seeds out")
    routings = STREAM_ROUTINGS
    if given["routing"] is not None:
        routings = tuple(rule.strip() for rule in given["routing"].split(","))
        unknown = [rule for rule in routings if rule not in STREAM_ROUTINGS]
        if unknown:
            raise TraceError(
                f"routing {unknown[0]!r} of streams is unknown, "
                f"allowed {', '.join(STREAM_ROUTINGS)}"
            )
    policies = given["policies"]
    return StreamPlanRequest(
        trace=trace,
        catalog=catalog,
        promise=promise,
        options=StreamPlanOptions(
            served=StreamOptions(
                slo=promise.slo,
                kv_tokens=given["kv_tokens"] or KV_TOKENS,
                max_running=given["max_running"] or MAX_RUNNING,
                seed=first,
            ),
            policies=[n.strip() for n in policies.split(",")]
            if policies
            else DEFAULT_STREAM_POLICIES,
            routings=routings,
            max_devices=given["max_devices"],
            confidence=given["confidence"],
            draws={first + k: drawn for k, drawn in enumerate(traces) if k},
        ),
        tell=tell,
    )
