"""The verb `plan`: the cheapest fleet for a trace and a promise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from traces.commands.stream_options import (
    KvTokensOption,
    LengthScaleOption,
    LengthsOption,
    MaxRunningOption,
    ThinOption,
)

if TYPE_CHECKING:
    from traces.planning.plan_request import PlanRequest

SATURATED = 3
"""The exit code of a plan that no fleet fits."""

OnProgress = Callable[[dict[str, Any]], None]
"""Called with a verification so far: foretold and nothing replayed, then after each load."""


class PlanVerifier(Protocol):
    """Verifies plans on servers; their addresses have commas between."""

    def check(self, request: PlanRequest, urls: str) -> None:
        """Refuse servers on which no plan of the request can be verified. Raises TraceError."""
        ...

    def verify(
        self,
        request: PlanRequest,
        plan: dict[str, Any],
        urls: str,
        duration_s: float,
        on_progress: OnProgress,
    ) -> dict[str, Any]:
        """Return the verification of a plan, each load replayed for so many seconds."""
        ...


def plan_command_with(verifier: PlanVerifier | None) -> Callable[..., None]:
    """Return the verb; what talks to servers is handed in, since no trace does."""

    def plan_command(
        context: typer.Context,
        trace: Annotated[str, typer.Option(metavar="SPEC", help="Trace file or generator.")],
        slo: Annotated[
            str,
            typer.Option(
                metavar="PROMISE",
                help='What must hold: "attainment>=0.999,accuracy>=0.775"; floor>=0.7 of every '
                "answer; gold:attainment>=0.9999 of one tenant or class. Of streams: "
                "first_output<=500ms,period<=50ms,attainment>=0.99,fluidity>=0.95.",
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
        routing: Annotated[
            str | None,
            typer.Option(
                metavar="RULE[,RULE...]",
                help="How queries get to several devices: one-queue (default), round-robin, or as "
                "in `simulate`; those beyond the two run in Python. Streams: round-robin, "
                "fewest-streams; default both.",
            ),
        ] = None,
        max_devices: Annotated[int | None, typer.Option(min=1, help="Devices at the most.")] = None,
        mixed: Annotated[
            bool,
            typer.Option("--mixed/--no-mixed", help="Also try fleets of two types of device."),
        ] = True,
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
            typer.Option(
                min=1, help="Draws of a generator's trace that the best fleets must keep."
            ),
        ] = 1,
        stream: Annotated[
            bool,
            typer.Option(
                "--stream", help="Hour by hour, for generators that do not fit in memory."
            ),
        ] = False,
        processes: Annotated[
            int | None, typer.Option(min=1, help="With --stream; default: one per core.")
        ] = None,
        verify: Annotated[
            str | None,
            typer.Option(
                metavar="URL[,URL...]",
                help="Foretell these servers of the planned device at four loads, then replay.",
            ),
        ] = None,
        verify_s: Annotated[
            float, typer.Option(min=1, help="Seconds of each load, with --verify.")
        ] = 20.0,
        thin: ThinOption = 1.0,
        length_scale: LengthScaleOption = 1.0,
        lengths: LengthsOption = None,
        kv_tokens: KvTokensOption = None,
        max_running: MaxRunningOption = None,
        json_out: Annotated[
            str | None, typer.Option("--json", metavar="FILE|-", help="Write the plan.")
        ] = None,
        html_out: Annotated[
            Path | None, typer.Option("--html", metavar="FILE", help="Write the plan's page.")
        ] = None,
    ) -> None:
        """Find the cheapest fleet that keeps a promise on a trace, and what nobody can undercut."""
        from traces.commands.command_line import command_line
        from traces.commands.output import trace_errors

        with trace_errors():
            from slackfit.output_files import check_outputs
            from traces.planning.plan_request import PlanRequest, read_request
            from traces.planning.verification import verification_lines
            from traces.trace import TraceError

            check_outputs(json_out, html_out)
            request = read_request(context.params, tell=lambda text: typer.echo(text, err=True))
            if verify is not None:
                if verifier is None or stream or not isinstance(request, PlanRequest):
                    raise TraceError(
                        "--verify goes without --stream, and with the command `supernet plan` only"
                    )
                verifier.check(request, verify)
            plan = request.plan()
            plan["command"] = command_line(
                context, "supernet plan", without=("json_out", "html_out")
            )
            is_told = json_out != "-"
            is_verified = verify is not None and not plan["saturated"]
            # One JSON goes to stdout, at the end; all else is there before servers are asked.
            _write(plan, None if is_verified and not is_told else json_out, html_out)
            if is_told:
                typer.echo(_summary(plan))
            if is_verified:
                assert verifier is not None
                assert verify is not None
                assert isinstance(request, PlanRequest)
                try:
                    plan["verification"] = verifier.verify(
                        request, plan, verify, verify_s,
                        lambda so_far: _note(plan, so_far, json_out),
                    )  # fmt: skip
                finally:
                    _write(plan, json_out, html_out)
                if is_told:
                    typer.echo("\n".join(verification_lines(plan["verification"])))
        if plan["saturated"]:
            raise typer.Exit(SATURATED)

    return plan_command


plan_command = plan_command_with(None)


def _note(plan: dict[str, Any], verification: dict[str, Any], json_out: str | None) -> None:
    """Write a verification so far to the plan's file; what is foretold on stderr, too."""
    from slackfit.output_files import write_text
    from traces.planning.verification import verification_lines

    plan["verification"] = verification
    if json_out not in (None, "-"):
        write_text(json_out, _text(plan))
    if not any("live" in level for level in verification["levels"]):
        typer.echo("\n".join(["foretold:", *verification_lines(verification)]), err=True)


def _write(plan: dict[str, Any], json_out: str | None, html_out: Path | None) -> None:
    from slackfit.output_files import write_each, write_text
    from traces.planning.page import plan_page

    write_each(
        lambda: None if json_out is None else write_text(json_out, _text(plan)),
        lambda: None if html_out is None else write_text(str(html_out), plan_page(plan)),
    )


def _text(plan: dict[str, Any]) -> str:
    return json.dumps(plan, indent=1, allow_nan=False) + "\n"


def _summary(plan: dict[str, Any]) -> str:
    """Return the plan in a few lines."""
    from traces.planning.page import undercut

    if plan["saturated"]:
        return f"saturated: {plan['why']}"
    headroom = plan["headroom"]
    lines = [
        f"{plan['fleet']} with {plan['policy']}: "
        f"{plan['cost_per_hour']:g} {plan['prices']['currency']} an hour",
        f"attainment {plan['attainment']:.5f}, accuracy {plan['accuracy']:.5f}; {undercut(plan)}",
        f"the promise holds up to {headroom['factor']:.2f} times the load "
        f"({headroom['low']:.2f} surely)",
    ]
    if plan.get("kind") == "streams":
        first, gap = plan["first_output_ms"]["p95"], plan["gap_ms"]["p95"]
        lines.insert(
            2,
            f"fluidity {plan['fluidity']:.5f}; 95 of 100 first outputs within {first or 0:.0f} ms, "
            f"95 of 100 gaps within {gap or 0:.0f} ms",
        )
    if plan["answers_of"] != "the whole trace":
        lines[-1] += f", of {plan['answers_of']}"
    if plan["simulated_by"] != "compiled":
        lines.append(f"simulated in Python: {plan['simulated_by']}")
    return "\n".join(lines)
