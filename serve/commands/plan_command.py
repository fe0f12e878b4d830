"""`supernet plan`: the verb of `traces`, with what verifies a plan on live servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from traces.commands.plan_command import OnProgress, plan_command_with
from traces.planning.plan_request import PlanRequest


class _LiveVerifier:
    """Verifies plans by replays against servers."""

    def check(self, request: PlanRequest, urls: str) -> None:
        from serve.commands.verified_plan import check_servers

        with _users_errors():
            check_servers(urls, [offer.profile for offer in request.catalog.offers])

    def verify(
        self,
        request: PlanRequest,
        plan: dict[str, Any],
        urls: str,
        duration_s: float,
        on_progress: OnProgress,
    ) -> dict[str, Any]:
        from serve.commands.verified_plan import PlanCheck, verify_plan

        assert request.trace is not None, "a streamed plan is not verified"
        check = PlanCheck(
            url=urls,
            trace=request.trace,
            profile=request.profile_of(plan["device"]),
            promise=request.promise,
            slo_s=request.slo_s,
            duration_s=duration_s,
            seed=request.options.seed,
        )
        with _users_errors():
            return verify_plan(check, on_progress, request.tell)


@contextmanager
def _users_errors() -> Iterator[None]:
    """Make what servers and senders raise an error that the command tells its user."""
    from serve.client import ClientError
    from traces.open_loop.sender_processes import SenderError
    from traces.trace import TraceError

    try:
        yield
    except (ClientError, SenderError) as error:
        raise TraceError(str(error)) from None


plan_command = plan_command_with(_LiveVerifier())
