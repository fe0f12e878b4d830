"""What became of a request that reached a model, for logs and spans: `RequestRecord` of a query."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from serve.engine.reply import Reply, cause_of
from slackfit.query import Outcome

_LONGEST_TEXT = 128  # of what a client or a model wrote: a line of a log stays a line

Facts = dict[str, str | int | float]


class RequestPhase(NamedTuple):
    """A part of a request's time, on the engine's clock."""

    name: str
    start_s: float
    end_s: float


class EndedRequest(Protocol):
    """A request, or a stream, that has ended; times are on the engine's clock."""

    @property
    def verb(self) -> str:
        """What was asked of the model, in a word."""
        ...

    @property
    def model(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def arrival_s(self) -> float: ...
    @property
    def ended_s(self) -> float: ...

    @property
    def is_on_time(self) -> bool:
        """Whether there is nothing to complain of."""
        ...

    def facts(self) -> Facts:
        """Return what there is to say of it, by name; times in milliseconds."""
        ...

    def phases(self) -> list[RequestPhase]:
        """Return where its time went, in order."""
        ...


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
    def verb(self) -> str:
        """See `EndedRequest`."""
        return "infer"

    @property
    def decisive(self) -> Outcome | None:
        """The outcome that the client gets: the first that is not on time, if there is one."""
        outcomes = [reply.outcome for reply in self.replies]
        missed = [o for o in outcomes if o.status != "on_time"]
        return cause_of(missed) if missed else next(iter(outcomes), None)

    @property
    def is_on_time(self) -> bool:
        """Whether every query was."""
        replies = self.replies
        return bool(replies) and all(reply.outcome.status == "on_time" for reply in replies)

    def facts(self) -> Facts:
        """See `EndedRequest`."""
        facts: Facts = {"model": self.model, "request_id": self.request_id}
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
            facts["queue_ms"] = in_ms(outcome.start_s - outcome.arrival_s)
            facts["execution_ms"] = in_ms(outcome.finish_s - outcome.start_s)
        facts["latency_ms"] = in_ms(outcome.latency_s)
        facts["slack_ms"] = in_ms(outcome.deadline_s - outcome.finish_s)
        return facts

    def phases(self) -> list[RequestPhase]:
        """See `EndedRequest`: queue and execution once per batch that ran it."""
        phases = [RequestPhase("door", self.arrival_s, self.submitted_s)]
        seen: set[int | None] = set()
        for reply in self.replies:
            outcome = reply.outcome
            if outcome.start_s is None:
                phases.append(RequestPhase("queue", self.submitted_s, outcome.finish_s))
            elif reply.batch_id not in seen:
                seen.add(reply.batch_id)
                phases.append(RequestPhase("queue", self.submitted_s, outcome.start_s))
                phases.append(RequestPhase("execution", outcome.start_s, outcome.finish_s))
        return phases


RequestObserver = Callable[[EndedRequest], None]


def in_ms(duration_s: float) -> float:
    """Return a time as it stands in facts."""
    return round(duration_s * 1e3, 3)
