"""The engine's bookkeeping: jobs (requests), tickets (queries), the ledger of open ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from serve.engine.guarded import Guarded
from serve.engine.reply import Reply
from slackfit.query import Outcome, Query, Status
from slackfit.scheduling.outcomes import unserved
from slackfit.spreading import Outlook

if TYPE_CHECKING:
    from subnetact.executor import Slot

State = Literal["starting", "ready", "draining", "stopped"]


class Job:
    """The queries of one request, answered together. Its replies are touched on one thread only.

    A request is one query, whatever the number of its samples; only one with more samples than a
    batch holds is several.
    """

    __slots__ = ("_missing", "_on_done", "query_ids", "replies", "slots")

    def __init__(self, slots: Sequence[Slot], on_done: Callable[[Job], None]) -> None:
        """Hold one slot for each query, all of its samples in it."""
        self.slots = slots
        self._on_done: Callable[[Job], None] | None = on_done
        self.query_ids: list[int] = []
        self.replies: list[Reply | None] = [None] * len(self.slots)
        self._missing = len(self.slots)

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
            on_done, self._on_done = self._on_done, None  # which knows the job: a cycle would
            assert on_done is not None, "a job is done once"  # hold its samples until one is
            on_done(self)  # looked for


class Ticket(NamedTuple):
    """One open query: the engine holds a ticket from its admission to its end."""

    job: Job
    part: int
    query: Query

    @property
    def slot(self) -> Slot:
        """The query's samples, as the executor staged them."""
        return self.job.slots[self.part]


class EndedQuery(NamedTuple):
    """A query that has ended, on its way to whoever waits for it."""

    ticket: Ticket
    reply: Reply


class Ledger:
    """The open queries of an engine and the count of the ended ones.

    Opening and ending happen under the engine's lock, delivering on one thread. Counts are of
    samples; `observer` is called with every reply when its job is answered; what it raises costs
    nobody an answer.
    """

    def __init__(self, observer: Callable[[Reply], None] | None) -> None:
        self.open: dict[int, Ticket] = {}
        self.counts: Counter[Status] = Counter()
        self._observer = None if observer is None else Guarded(observer)

    def admit(self, ticket: Ticket) -> None:
        """Open a query."""
        self.open[ticket.query.query_id] = ticket
        ticket.job.query_ids.append(ticket.query.query_id)

    def end(
        self,
        outcome: Outcome,
        output: np.ndarray | None = None,
        execution_s: float = 0.0,
        batch_id: int | None = None,
        form: str = "",
        outlook: Outlook | None = None,
    ) -> EndedQuery:
        """Close a query."""
        ticket = self.open.pop(outcome.query_id)
        tenant = ticket.query.tenant
        reply = Reply(outcome, output, execution_s, batch_id, form, tenant, outlook)
        return EndedQuery(ticket, reply)

    def abandon(self, reason: str, now_s: float) -> list[EndedQuery]:
        """Close every query as failed, past a scheduler that can no longer be asked."""
        queries = [ticket.query for ticket in self.open.values()]
        return [self.end(unserved(query, "failed", reason, now_s)) for query in queries]

    def deliver(self, ended: Sequence[EndedQuery]) -> None:
        """Count the ends and answer the jobs; then let the observer look."""
        for ticket, reply in ended:
            self.counts[reply.outcome.status] += reply.outcome.samples
            ticket.job.answer(ticket.part, reply)
        if self._observer is not None:
            for _, reply in ended:
                self._observer(reply)

    def note(self, reply: Reply) -> None:
        """Count the end of a query that was never opened; on the thread that delivers."""
        self.counts[reply.outcome.status] += reply.outcome.samples
        if self._observer is not None:
            self._observer(reply)


class EngineStatus(NamedTuple):
    """A snapshot for health checks and metrics.

    `fallback` says why the policy was replaced, `fault` why the device thread ended; both are
    empty in a sound engine. `latency_factor` is how much slower than profiled the device is taken
    to be, `latency_delay_s` what every batch waits besides (None: not corrected).
    """

    state: State
    policy: str
    queue_depth: int
    num_running: int
    fallback: str
    fault: str
    ended: dict[Status, int]
    latency_factor: float | None = None
    latency_delay_s: float | None = None
