"""`RequestRecord`: what became of one request that reached a model, for logs and spans."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from serve.engine.reply import Reply, cause_of
from slackfit.query import Outcome

_LONGEST_TEXT = 128  # of what a client or a model wrote: a line of a log stays a line


class RequestRecord(NamedTuple):
    """A request's ids, its times on the engine's clock, and how its queries ended.

    `request_id` travels in the header `x-request-id`, `client_id` in the request's own `id`.
    `replies` is empty where the client went away first.
    """

    model: str
    request_id: str
    client_id: str | None
    headers: Mapping[str, str]
    arrival_s: float
    submitted_s: float
    ended_s: float
    replies: Sequence[Reply]
    tenant: str = ""

    @property
    def decisive(self) -> Outcome | None:
        """The outcome that the client gets: the first that is not on time, if there is one."""
        outcomes = [reply.outcome for reply in self.replies]
        missed = [o for o in outcomes if o.status != "on_time"]
        return cause_of(missed) if missed else next(iter(outcomes), None)

    def facts(self) -> dict[str, str | int | float]:
        """Return what there is to say of it, by name; times in milliseconds."""
        facts: dict[str, str | int | float] = {"model": self.model, "request_id": self.request_id}
        if self.client_id is not None:
            facts["id"] = self.client_id[:_LONGEST_TEXT]
        if self.tenant:
            facts["tenant"] = self.tenant
        outcome = self.decisive
        if outcome is None:
            return facts | {"status": "dropped", "reason": "cancelled"}
        facts["query_id"] = outcome.query_id
        facts["status"] = outcome.status
        if outcome.reason:
            facts["reason"] = outcome.reason[:_LONGEST_TEXT]
        if outcome.start_s is not None:
            facts["subnet"] = str(outcome.subnet_id)
            facts["accuracy"] = round(outcome.accuracy, 4)
            facts["batch_size"] = outcome.batch_size
            facts["queue_ms"] = _ms(outcome.start_s - outcome.arrival_s)
            facts["execution_ms"] = _ms(outcome.finish_s - outcome.start_s)
        facts["latency_ms"] = _ms(outcome.latency_s)
        facts["slack_ms"] = _ms(outcome.deadline_s - outcome.finish_s)
        return facts


RequestObserver = Callable[[RequestRecord], None]


def _ms(duration_s: float) -> float:
    return round(duration_s * 1e3, 3)
