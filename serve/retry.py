"""`Retrying`: asks again, within a query's slack, what a dying or draining server did not answer.

Inference has no side effects, so a query whose server died while it ran may be asked again; each
attempt carries only the slack that is left, so that a second server refuses what it cannot make.
Not asked again: what was refused for load (`queue_full`, `infeasible`), because retries would feed
the overload. Retries draw on a bucket that successes refill, as in gRPC's retry throttling: when a
server is down for good, the load on it does not multiply.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from traces.target import ReplayReply, ReplayRequest, Target

RETRIED_REASONS = frozenset({"draining", "not_ready", "device_failed"})
_FIRST_WAIT_S = 0.01
_LONGEST_WAIT_S = 0.25
_FULL_BUCKET = 100.0
_REFILL = 0.1  # per answered query


class Retrying:
    """A target around another one; `num_retries` counts what was asked again.

    `clock` and `sleep` are injected for tests.
    """

    def __init__(
        self,
        target: Target,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._target = target
        self._clock = clock
        self._sleep = sleep
        self._bucket = _FULL_BUCKET
        self.num_retries = 0

    async def infer(self, request: ReplayRequest) -> ReplayReply:
        """Send one query, again while that may help; return the last answer."""
        start_s = self._clock()
        wait_s = _FIRST_WAIT_S
        attempt = request
        while True:
            reply = await self._target.infer(attempt)
            if not _may_retry(reply):
                self._bucket = min(_FULL_BUCKET, self._bucket + _REFILL)
                return reply
            spent_s = self._clock() - start_s + wait_s
            if spent_s >= request.slo_s or self._bucket < 1:
                return reply
            self._bucket -= 1
            self.num_retries += 1
            await self._sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
            attempt = _after(request, self._clock() - start_s)

    async def close(self) -> None:
        """Close the target."""
        await self._target.close()


def _after(request: ReplayRequest, spent_s: float) -> ReplayRequest:
    """Return the request with what is left of its times."""
    timeout_s = None if request.timeout_s is None else max(request.timeout_s - spent_s, 1e-3)
    return replace(request, slo_s=max(request.slo_s - spent_s, 1e-3), timeout_s=timeout_s)


def _may_retry(reply: ReplayReply) -> bool:
    return reply.can_retry or reply.reason in RETRIED_REASONS
