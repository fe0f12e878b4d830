"""The verb `plan`: the cheapest fleet for a trace and a promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

SATURATED = 3
"""The exit code of a plan that no fleet fits."""


def plan_command(
    context: typer.Context,
    trace: Annotated[str, typer.Option(metavar="SPEC", help="Trace file or generator.")],
    slo: Annotated[
        str,
        typer.Option(
            metavar="PROMISE", help='What must hold: "attainment>=0.999,accuracy>=0.775".'
        ),
    ],
    profile: Annotated[
        str | None,
        typer.Option(metavar="FILE[,FILE...]", help="A latency profile per type of device."),
    ] = None,
    slo_ms: Annotated[
        float | None, typer.Option(min=0.001, help="Deadline; default: the trace's own.")
    ] = None,
    catalog: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Devices and their prices (TOML); else all cost 1."),
    ] = None,
    policies: Annotated[
        str | None, typer.Option(metavar="NAME[,NAME...]", help="Policies to try.")
    ] = None,
    max_devices: Annotated[int | None, typer.Option(min=1, help="Devices at the most.")] = None,
    confidence: Annotated[
        float,
        typer.Option(
            min=0, max=0.999, help="Share of redrawn traces that keep the promise; 0: this one."
        ),
    ] = 0.95,
    noise: Annotated[
        bool, typer.Option("--noise", help="Draw latencies from the profile's quantiles.")
    ] = False,
    overhead_ms: Annotated[
        float, typer.Option(min=0, help="Added to every batch's profiled latency.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")] = 0,
    seeds: Annotated[
        int,
        typer.Option(min=1, help="Draws of a generator's trace that the best fleets must keep."),
    ] = 1,
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the plan.")
    ] = None,
    html_out: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the plan's page.")
    ] = None,
) -> None:
    """Find the cheapest fleet that keeps a promise on a trace, and what no fleet can undercut."""
    from traces.commands.command_line import command_line
    from traces.commands.output import trace_errors

    with trace_errors():
        from slackfit.output_files import check_outputs, write_each, write_text
        from traces.planning.page import plan_page

        check_outputs(json_out, html_out)
        plan = _plan(
            trace, slo, profile, slo_ms, catalog, policies, max_devices, confidence, noise,
            overhead_ms, seed, seeds,
        )  # fmt: skip
        plan["command"] = command_line(context, "supernet plan", without=("json_out", "html_out"))
        text = json.dumps(plan, indent=1, allow_nan=False) + "\n"
        write_each(
            lambda: None if json_out is None else write_text(json_out, text),
            lambda: None if html_out is None else write_text(str(html_out), plan_page(plan)),
        )
        if json_out != "-":
            typer.echo(_summary(plan))
    if plan["saturated"]:
        raise typer.Exit(SATURATED)


def _plan(
    spec: str,
    promise_text: str,
    profile_text: str | None,
    slo_ms: float | None,
    catalog_path: Path | None,
    policies: str | None,
    max_devices: int | None,
    confidence: float,
    noise: bool,
    overhead_ms: float,
    seed: int,
    seeds: int,
) -> dict[str, Any]:
    from dataclasses import replace

    import numpy as np

    from slackfit.derive import with_overhead
    from slackfit.simulation.devices import DeviceModel
    from traces.planning.candidates import DEFAULT_POLICIES
    from traces.planning.catalog import load_catalog, without_prices
    from traces.planning.planner import PlanOptions, make_plan
    from traces.planning.promise import parse_promise
    from traces.spec.spec import parse_spec
    from traces.trace import TraceError

    promise = parse_promise(promise_text)
    paths = [Path(part.strip()) for part in (profile_text or "").split(",") if part.strip()]
    if not paths and catalog_path is None:
        raise TraceError("nothing to plan with; give --profile FILE or --catalog FILE")
    offers = without_prices(paths) if catalog_path is None else load_catalog(catalog_path, paths)
    offers = replace(
        offers,
        offers=tuple(
            replace(offer, profile=with_overhead(offer.profile, overhead_ms / 1e3))
            for offer in offers.offers
        ),
    )
    profiles = [offer.profile for offer in offers.offers]
    if noise and len(profiles) != 1:
        raise TraceError("--noise goes with one profile, whose quantiles it draws from")
    trace = parse_spec(spec, seed=seed)
    draws = {seed + k: parse_spec(spec, seed=seed + k) for k in range(1, seeds)}
    if any(np.array_equal(drawn.arrival_s, trace.arrival_s) for drawn in draws.values()):
        raise TraceError(f"{spec!r} is the same with every seed; --seeds goes with generators")
    options = PlanOptions(
        policies=[n.strip() for n in policies.split(",")] if policies else DEFAULT_POLICIES,
        max_devices=max_devices,
        confidence=confidence,
        devices=DeviceModel(noise=next(iter(profiles)) if noise else None),
        seed=seed,
        draws=draws,
    )
    return make_plan(
        trace,
        None if slo_ms is None else slo_ms / 1e3,
        offers,
        promise,
        options,
        tell=lambda text: typer.echo(text, err=True),
    )


def _summary(plan: dict[str, Any]) -> str:
    """Return the plan in a few lines."""
    if plan["saturated"]:
        return f"saturated: {plan['why']}"
    headroom = plan["headroom"]
    lines = [
        f"{plan['workers']} x {plan['device']} with {plan['policy']}: "
        f"{plan['cost_per_hour']:g} {plan['prices']['currency']} an hour",
        f"attainment {plan['attainment']:.5f}, accuracy {plan['accuracy']:.5f}; "
        f"no policy needs fewer than {plan['certificate_workers']}",
        f"the promise holds up to {headroom['factor']:.2f} times the load "
        f"({headroom['low']:.2f} surely)",
    ]
    return "\n".join(lines)
