"""The verb `plan`: the cheapest fleet for a trace and a promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import typer

from traces.commands.plan_options import (
    CatalogOption,
    ConfidenceOption,
    DeadlineOption,
    DrawsOption,
    HourlyOption,
    HtmlOption,
    JsonOption,
    MaxDevicesOption,
    MixedOption,
    PoliciesOption,
    ProcessesOption,
    ProfilesOption,
    PromiseOption,
    RoutingsOption,
    VerifyOption,
    VerifySecondsOption,
)
from traces.commands.simulate_options import (
    NoiseOption,
    OverheadOption,
    SeedOption,
    TraceOption,
)
from traces.commands.stream_options import (
    KvTokensOption,
    LengthScaleOption,
    LengthsOption,
    MaxRunningOption,
    ThinOption,
)

if TYPE_CHECKING:
    from traces.planning.plan_request import PlanRequest
    from traces.planning.streams.stream_request import StreamPlanRequest

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
        trace: TraceOption,
        slo: PromiseOption,
        profile: ProfilesOption = None,
        slo_ms: DeadlineOption = None,
        catalog: CatalogOption = None,
        policies: PoliciesOption = None,
        routing: RoutingsOption = None,
        max_devices: MaxDevicesOption = None,
        mixed: MixedOption = True,
        confidence: ConfidenceOption = 0.95,
        noise: NoiseOption = False,
        overhead_ms: OverheadOption = 0.0,
        seed: SeedOption = 0,
        seeds: DrawsOption = 1,
        stream: HourlyOption = False,
        processes: ProcessesOption = None,
        verify: VerifyOption = None,
        verify_s: VerifySecondsOption = 20.0,
        thin: ThinOption = 1.0,
        length_scale: LengthScaleOption = 1.0,
        lengths: LengthsOption = None,
        kv_tokens: KvTokensOption = None,
        max_running: MaxRunningOption = None,
        json_out: JsonOption = None,
        html_out: HtmlOption = None,
    ) -> None:
        """Find the cheapest fleet that keeps a promise on a trace, and what nobody can undercut."""
        from traces.commands.output import trace_errors

        with trace_errors():
            plan = _make_plan(context, verifier)
        if plan["saturated"]:
            raise typer.Exit(SATURATED)

    return plan_command


plan_command = plan_command_with(None)


def _make_plan(context: typer.Context, verifier: PlanVerifier | None) -> dict[str, Any]:
    """Make, write, tell and, where it is asked for, verify the plan of a command's parameters."""
    from traces.commands.command_line import command_line
    from traces.commands.plan_outputs import PlanOutputs, summary_lines
    from traces.planning.plan_request import read_request
    from traces.planning.verification import verification_lines

    given = context.params
    outputs = PlanOutputs(given["json_out"], given["html_out"])
    outputs.check()
    request = read_request(given, tell=lambda text: typer.echo(text, err=True))
    verify = _verification_of(request, given, verifier)
    plan = request.plan()
    plan["command"] = command_line(context, "supernet plan", without=("json_out", "html_out"))
    if verify is None or plan["saturated"]:
        outputs.write(plan)
        outputs.tell(summary_lines(plan))
        return plan
    outputs.write_unverified(plan)  # it is there before servers are asked
    outputs.tell(summary_lines(plan))
    try:
        plan["verification"] = verify(plan, lambda so_far: outputs.note(plan, so_far))
    finally:
        outputs.write(plan)
    outputs.tell(verification_lines(plan["verification"]))
    return plan


def _verification_of(
    request: PlanRequest | StreamPlanRequest, given: dict[str, Any], verifier: PlanVerifier | None
) -> Callable[[dict[str, Any], OnProgress], dict[str, Any]] | None:
    """Return what verifies the request's plan on the servers of `--verify`; None without it.

    The servers are asked now. Raises TraceError where no plan of the request can be verified.
    """
    from traces.planning.plan_request import PlanRequest
    from traces.trace import TraceError

    urls: str | None = given["verify"]
    if urls is None:
        return None
    if verifier is None or given["stream"] or not isinstance(request, PlanRequest):
        raise TraceError(
            "--verify goes without --stream, and with the command `supernet plan` only"
        )
    verifier.check(request, urls)
    return lambda plan, on_progress: verifier.verify(
        request, plan, urls, given["verify_s"], on_progress
    )
