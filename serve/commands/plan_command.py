"""`supernet plan`: the verb of `traces`, with what verifies a plan on a live server."""

from __future__ import annotations

from typing import Any

from traces.commands.plan_command import OnForecast, plan_command_with
from traces.planning.plan_request import PlanRequest


def _verified(
    request: PlanRequest, plan: dict[str, Any], url: str, duration_s: float, on_forecast: OnForecast
) -> dict[str, Any]:
    from serve.client import ClientError
    from serve.commands.verified_plan import PlanCheck, verify_plan
    from traces.open_loop.sender_processes import SenderError
    from traces.trace import TraceError

    assert request.trace is not None, "a streamed plan is not verified"
    check = PlanCheck(
        url=url,
        trace=request.trace,
        profile=request.profile_of(plan["device"]),
        promise=request.promise,
        slo_s=request.slo_s,
        duration_s=duration_s,
        seed=request.options.seed,
    )
    try:
        return verify_plan(check, on_forecast, request.tell)
    except (ClientError, SenderError) as error:
        raise TraceError(str(error)) from None


plan_command = plan_command_with(_verified)
