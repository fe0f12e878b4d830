"""`PlanRequest`: what the options of `supernet plan` ask for, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from slackfit.derive import with_overhead
from slackfit.profile import LatencyProfile
from slackfit.simulation.devices import DeviceModel
from slackfit.simulation.routing import parse_routing
from traces.planning.candidates import DEFAULT_POLICIES
from traces.planning.catalog import Catalog, load_catalog, without_prices
from traces.planning.planner import PlanOptions, make_plan
from traces.planning.promise import Promise, parse_promise
from traces.planning.search import Tell
from traces.planning.streams.stream_request import (
    StreamPlanRequest,
    is_of_streams,
    read_stream_request,
)
from traces.planning.verification import check_verifiable
from traces.spec.spec import parse_spec
from traces.trace import Trace, TraceError


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """A plan to make: of `spec` with `seed` and so many further seeds, for a promise.

    `trace` is None where it is streamed.
    """

    spec: str
    trace: Trace | None
    slo_s: float | None
    catalog: Catalog
    promise: Promise
    options: PlanOptions
    seeds: int
    processes: int | None
    tell: Tell

    def plan(self) -> dict[str, Any]:
        """Make it. Raises TraceError for what can't be."""
        if self.trace is not None:
            return make_plan(
                self.trace, self.slo_s, self.catalog, self.promise, self.options, self.tell
            )
        # Here: it starts processes, which plans of traces in memory need not know.
        from traces.planning.long_plan import make_long_plan
        from traces.spec.streamed import piece_source

        first = self.options.seed
        sources = {
            seed: piece_source(self.spec, seed=seed) for seed in range(first, first + self.seeds)
        }
        return make_long_plan(
            sources, self.slo_s, self.catalog, self.promise, self.options, self.tell,
            processes=self.processes,
        )  # fmt: skip

    def profile_of(self, device: str) -> LatencyProfile:
        """Return the profile that a device of the catalogue is planned with."""
        return next(offer.profile for offer in self.catalog.offers if offer.name == device)


def read_request(given: Mapping[str, Any], tell: Tell) -> PlanRequest | StreamPlanRequest:
    """Return what the command's parameters, by name, ask for.

    Raises TraceError and ProfileError for what can't be, FileNotFoundError.
    """
    catalog = _catalog(given["profile"], given["catalog"], given["overhead_ms"] * 1e-3)
    if is_of_streams(catalog, given):
        return read_stream_request(given, catalog, tell)
    promise = parse_promise(given["slo"])
    if given["verify"] is not None:
        check_verifiable(promise)
    profiles = [offer.profile for offer in catalog.offers]
    if given["noise"] and len(profiles) != 1:
        raise TraceError("--noise goes with one profile, whose quantiles it draws from")
    spec, seed, policies = given["trace"], given["seed"], given["policies"]
    trace = None if given["stream"] else parse_spec(spec, seed=seed)
    draws: dict[int, Trace] = {}
    if trace is not None:
        draws = {seed + k: parse_spec(spec, seed=seed + k) for k in range(1, given["seeds"])}
        if any(np.array_equal(drawn.arrival_s, trace.arrival_s) for drawn in draws.values()):
            raise TraceError(f"{spec!r} is the same with every seed; --seeds goes with generators")
    try:
        routings = [
            parse_routing(rule.strip()) for rule in (given["routing"] or "one-queue").split(",")
        ]
    except ValueError as error:
        raise TraceError(str(error)) from None
    options = PlanOptions(
        policies=[n.strip() for n in policies.split(",")] if policies else DEFAULT_POLICIES,
        routings=routings,
        max_devices=given["max_devices"],
        confidence=given["confidence"],
        devices=DeviceModel(noise=profiles[0] if given["noise"] else None),
        seed=seed,
        draws=draws,
        # A server has one profile: what is verified is of one type.
        mixed=given["mixed"] and given["verify"] is None,
    )
    return PlanRequest(
        spec=spec,
        trace=trace,
        slo_s=None if given["slo_ms"] is None else given["slo_ms"] / 1e3,
        catalog=catalog,
        promise=promise,
        options=options,
        seeds=given["seeds"],
        processes=given["processes"],
        tell=tell,
    )


def _catalog(profiles: str | None, path: Path | None, overhead_s: float) -> Catalog:
    """Return the devices to plan with, each batch so much longer."""
    paths = [Path(part.strip()) for part in (profiles or "").split(",") if part.strip()]
    if not paths and path is None:
        raise TraceError("nothing to plan with; give --profile FILE or --catalog FILE")
    catalog = without_prices(paths) if path is None else load_catalog(path, paths)
    try:
        offers = tuple(
            replace(offer, profile=with_overhead(offer.profile, overhead_s))
            for offer in catalog.offers
        )
    except ValueError as error:
        raise TraceError(str(error)) from None
    return replace(catalog, offers=offers)
