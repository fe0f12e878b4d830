"""A plan's forecast of live devices at four loads, and what the devices then did.

The forecast is the simulated twin of their servers (`traces.open_loop.live_twin`): a scheduler with
its settings, its profile, and its door as measured before; over several of them queries are spread
as our clients spread them. Capacity is the highest rate at which the twin keeps the promise.
Whoever calls writes the forecast down before anything is replayed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from slackfit.query import Outcome
from traces.open_loop.fidelity import fidelity, figures
from traces.open_loop.live_twin import LiveServer, simulate_live_fleet
from traces.open_loop.replay_options import ReplayOptions
from traces.open_loop.sender_processes import processes_for
from traces.planning.promise import Promise
from traces.simulation.capacity import Goal, find_capacity
from traces.trace import Trace, TraceError

LOADS = (0.5, 0.7, 0.85, 0.95)
"""Shares of the capacity."""
WARMUP_S = 1.0
_ATTAINMENT_WITHIN = {0.5: 0.005, 0.7: 0.005, 0.85: 0.01, 0.95: 0.03}
_LATENCY_WITHIN = 0.1
_LATENCY_UP_TO = 0.85
_LATENCIES = ("p50_ms", "p95_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadForecast:
    """What the servers should do with `trace`, which is `load` of their capacity."""

    load: float
    trace: Trace
    figures: Mapping[str, float | None]
    outcomes: Sequence[Outcome]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "load": self.load,
            "rate_qps": self.trace.rate_qps,
            "num_queries": len(self.trace),
            "predicted": dict(self.figures),
        }


def check_verifiable(promise: Promise) -> None:
    """Refuse a promise of which replays know nothing: queries are sent without a floor, all alike.

    Raises TraceError.
    """
    if promise.floor or promise.parts:
        raise TraceError(
            f"--verify goes with a promise to all, of attainment and accuracy; {promise} names "
            "floors or groups, which requests of a replay do not carry: plan with it, and verify "
            "a plan without them"
        )


def capacity_qps(
    trace: Trace,
    servers: Sequence[LiveServer],
    promise: Promise,
    options: ReplayOptions,
    duration_s: float,
) -> float:
    """Return the highest rate of the trace's traffic at which the simulated servers keep `promise`.

    Each rate is simulated for `duration_s` beside the warm-up. Raises TraceError where they keep it
    at none, and what `check_verifiable` raises.
    """
    check_verifiable(promise)

    def keeps(at: Trace) -> float:
        part = at_rate(trace, at.rate_qps, duration_s + options.warmup_s)
        found = figures(_simulated(part, servers, options))
        attainment, accuracy = found["slo_attainment"], found["mean_serving_accuracy"]
        return float(promise.is_kept(attainment or 0.0, accuracy or 0.0))

    # One arrival stands for the trace: stretched to a low rate that would last for years.
    one = Trace(arrival_s=np.zeros(1), duration_s=1.0 / trace.rate_qps)
    rate_qps = find_capacity(one, Goal("attainment", 0.5), keeps).rate_qps
    if not rate_qps:
        raise TraceError(
            f"a simulated server with policy {servers[0].policy!r} keeps {promise} at no rate: "
            "there is no load to verify the plan at; serve with the plan's policy"
        )
    return rate_qps


def at_rate(trace: Trace, rate_qps: float, duration_s: float) -> Trace:
    """Return the trace's first arrivals, as many as `duration_s` has at `rate_qps`, at that rate.

    A trace of fewer arrivals is followed by itself, as often as need be.
    """
    count = max(round(rate_qps * duration_s), 2)
    if count > len(trace):  # at that rate first: repeated as it is it may last for years
        trace = trace.rescale_rate(rate_qps)
    while count > len(trace):
        trace = replace(trace.splice(trace), metadata={**trace.metadata, "repeated": True})
    if count < len(trace):
        trace = trace.window(0.0, float(np.nextafter(trace.arrival_s[count - 1], np.inf)))
    return trace.rescale_rate(rate_qps)


def forecasts(
    trace: Trace,
    servers: Sequence[LiveServer],
    capacity: float,
    options: ReplayOptions,
    duration_s: float,
) -> list[LoadForecast]:
    """Return what the servers should do at each of `LOADS`."""
    found: list[LoadForecast] = []
    for number, load in enumerate(LOADS):
        part = at_rate(trace, load * capacity, duration_s + options.warmup_s)
        outcomes = _simulated(part, servers, replace(options, seed=options.seed + number))
        found.append(
            LoadForecast(load=load, trace=part, figures=figures(outcomes), outcomes=outcomes)
        )
    return found


def judged(forecast: LoadForecast, live: Sequence[Outcome], invalid_reason: str) -> dict[str, Any]:
    """Return the row of one load: predicted, live, errors, and whether they are within bounds.

    The error of a latency is relative to the live one. Beyond 0.85 of the capacity only attainment
    is bounded. A run whose generator was late has `invalid_reason`, and is not within.
    """
    table = fidelity(live, forecast.outcomes)
    errors = {name: row["error"] for name, row in table.items()}
    return {
        **forecast.to_json(),
        "live": {name: row["live"] for name, row in table.items()},
        "error": errors,
        "invalid_reason": invalid_reason,
        "is_within": not invalid_reason and _is_within(forecast.load, errors),
    }


def _simulated(
    trace: Trace, servers: Sequence[LiveServer], options: ReplayOptions
) -> list[Outcome]:
    """Return the outcomes of a trace, sent by as many processes as a replay would."""
    return simulate_live_fleet(trace, servers, options, num_senders=processes_for(trace))


def _is_within(load: float, errors: Mapping[str, float | None]) -> bool:
    bounds = {"slo_attainment": _ATTAINMENT_WITHIN[load]}
    if load <= _LATENCY_UP_TO:
        bounds |= dict.fromkeys(_LATENCIES, _LATENCY_WITHIN)
    found = {name: errors[name] for name in bounds}
    return all(error is not None and abs(error) <= bounds[name] for name, error in found.items())


def verification_lines(verification: Mapping[str, Any]) -> list[str]:
    """Return a verification as lines of text: what was measured, then a table of the loads."""
    lines = [
        f"{verification['cpu']}, load {verification['load_average']:.2f}; capacity "
        f"{verification['capacity_qps']:.1f} queries/s"
    ]
    lines += [
        f"{server['url']}: {server['policy']} on {server['device']}; door: "
        f"{server['request_ms']:.3f} ms of each request, {server['idle_ms']:.2f} ms besides "
        "execution when idle"
        for server in verification["servers"]
    ]
    lines.append(
        f"{'load':>5} {'rate':>8}  {'figure':<22} {'predicted':>10} {'live':>10} {'error':>9}"
    )
    for level in verification["levels"]:
        for name, predicted in level["predicted"].items():
            live, error = (level.get(key, {}).get(name) for key in ("live", "error"))
            is_latency = name in _LATENCIES
            lines.append(
                f"{level['load']:>5.0%} {level['rate_qps']:>8.1f}  {name:<22} "
                f"{_shown(predicted, is_latency):>10} {_shown(live, is_latency):>10} "
                + ("" if error is None else f"{error:>+9.1%}" if is_latency else f"{error:>+9.4f}")
            )
        if level.get("invalid_reason"):
            lines.append(f"      INVALID: {level['invalid_reason']}")
    return [line.rstrip() for line in lines]


def _shown(value: float | None, is_latency: bool) -> str:
    return "" if value is None else f"{value:.2f}" if is_latency else f"{value:.4f}"
