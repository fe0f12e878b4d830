"""`OpenRequest`: a request in an engine, from its submission to its end; for callers of both kinds.

Who works without a task is called at its end, who has one awaits it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serve.engine.job import Job
from serve.engine.reply import Reply

OnEnd = Callable[[list[Reply]], None]
"""Is called once, in the event loop, with a reply for each query of a request; never raises."""

Withdraw = Callable[[], None]
"""Withdraws what is still queued of a request: its client has gone."""


class OpenRequest:
    """Calls `on_end` with the replies of a job; ends what is left of it at its hard deadline."""

    __slots__ = ("_expiry", "_job", "_on_end", "_withdraw")

    def __init__(self, on_end: OnEnd, withdraw: Callable[[Job, str], None]) -> None:
        self._on_end = on_end
        self._withdraw = withdraw
        self._job: Job | None = None
        self._expiry: asyncio.TimerHandle | None = None

    def done(self, job: Job) -> None:
        """Take the end of the job, perhaps before it is known here."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._on_end([reply for reply in job.replies if reply is not None])

    def opened(self, job: Job, left_s: float | None) -> None:
        """Know the job, and how long its client wants an answer (None: whenever it comes)."""
        self._job = job
        if left_s is not None and not job.is_done:
            loop = asyncio.get_running_loop()
            self._expiry = loop.call_later(max(0.0, left_s), self._withdraw, job, "expired")

    def withdraw(self) -> None:
        """Withdraw what is still queued."""
        if self._job is not None and not self._job.is_done:
            self._withdraw(self._job, "cancelled")


async def replies_of(open_request: Callable[[OnEnd], Withdraw]) -> list[Reply]:
    """Open a request and await its replies; a cancelled task withdraws it."""
    done: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()

    def end(replies: list[Reply]) -> None:
        if not done.done():
            done.set_result(replies)

    withdraw = open_request(end)
    try:
        return await done
    except asyncio.CancelledError:
        withdraw()
        raise
