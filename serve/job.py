"""The engine's bookkeeping of open queries: jobs (requests), tickets (queries), their ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from serve.reply import Reply
from slackfit.query import Outcome, Query, Status

State = Literal["starting", "ready", "draining", "stopped"]


class Job:
    """The queries of one request, answered together. Its replies are touched on one thread only."""

    __slots__ = ("_missing", "on_done", "payloads", "query_ids", "replies")

    def __init__(self, payloads: np.ndarray, on_done: Callable[[Job], None]) -> None:
        self.payloads = payloads  # uint8 (B, C, H, W)
        self.on_done = on_done
        self.query_ids: list[int] = []
        self.replies: list[Reply | None] = [None] * len(payloads)
        self._missing = len(payloads)

    @property
    def is_done(self) -> bool:
        """Whether every query has its reply."""
        return self._missing == 0

    def answer(self, index: int, reply: Reply) -> None:
        """Take one reply; the last one calls `on_done`."""
        assert self.replies[index] is None, "a query ended twice"
        self.replies[index] = reply
        self._missing -= 1
        if not self._missing:
            self.on_done(self)


class Ticket(NamedTuple):
    """One open query: the engine holds a ticket from its admission to its end."""

    job: Job
    row: int
    query: Query


class Ended(NamedTuple):
    """A query that has ended, on its way to whoever waits for it."""

    ticket: Ticket
    reply: Reply


class EngineStatus(NamedTuple):
    """A snapshot for health checks and metrics.

    `fallback` says why the policy was replaced, `fault` why the device thread ended; both are
    empty in a sound engine. `latency_factor` is how much slower than profiled the device is taken
    to be (None: not corrected).
    """

    state: State
    policy: str
    queue_depth: int
    num_running: int
    fallback: str
    fault: str
    ended: dict[Status, int]
    latency_factor: float | None = None


def end_unrun(query: Query, status: Status, reason: str, now_s: float) -> Outcome:
    """Return the outcome of a query that ends without having been run."""
    return Outcome(
        query.query_id, status, reason, query.arrival_s, query.deadline_s, None, now_s, None, 0.0, 0
    )
