"""`StreamRecord`: what became of one stream, for logs and spans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from serve.observe.request_record import Facts, RequestPhase, in_ms
from slackfit.streams.stream_query import StreamOutcome

_LONGEST_TEXT = 128


class StreamRecord(NamedTuple):
    """A stream's request, when the engine had it (on its clock), and how it ended."""

    model: str
    request_id: str
    headers: Mapping[str, str]
    submitted_s: float
    outcome: StreamOutcome

    @property
    def verb(self) -> str:
        """See `EndedRequest`."""
        return "stream"

    @property
    def arrival_s(self) -> float:
        """When its request's first byte was there."""
        return self.outcome.query.arrival_s

    @property
    def ended_s(self) -> float:
        """When it ended."""
        return self.outcome.finish_s

    @property
    def is_on_time(self) -> bool:
        """Whether its reader was hardly ever kept waiting."""
        return self.outcome.status == "on_time"

    def facts(self) -> Facts:
        """See `EndedRequest`: how long it was, how it was served, how its reader fared."""
        outcome, query = self.outcome, self.outcome.query
        facts: Facts = {"model": self.model, "request_id": self.request_id}
        if query.tenant:
            facts["tenant"] = query.tenant
        facts |= {"query_id": outcome.query_id, "status": outcome.status}
        if outcome.reason:
            facts["reason"] = outcome.reason[:_LONGEST_TEXT]
        facts |= {
            "prompt_tokens": query.prompt_tokens,
            "cached_tokens": query.cached_tokens,
            "tokens": len(outcome.output_s),
        }
        if outcome.output_s:
            widths = Counter(outcome.subnet_ids)
            facts |= {
                "widths": ",".join(f"{name}:{count}" for name, count in widths.items()),
                "quality": round(sum(outcome.qualities) / len(outcome.qualities), 4),
                "fluidity": round(outcome.fluidity, 4),
                "ttft_ms": in_ms(outcome.output_s[0] - query.arrival_s),
            }
        if outcome.start_s is not None:
            facts["queue_ms"] = in_ms(outcome.start_s - query.arrival_s)
        if outcome.preemptions:
            facts["preemptions"] = outcome.preemptions
        facts["latency_ms"] = in_ms(outcome.finish_s - query.arrival_s)
        return facts

    def phases(self) -> list[RequestPhase]:
        """See `EndedRequest`: until its prompt was begun, until its first output, the others."""
        outcome = self.outcome
        phases = [RequestPhase("door", self.arrival_s, self.submitted_s)]
        start_s, end_s = outcome.start_s, outcome.finish_s
        if start_s is None:
            return [*phases, RequestPhase("queue", self.submitted_s, end_s)]
        first_s = outcome.output_s[0] if outcome.output_s else end_s
        phases += [
            RequestPhase("queue", self.submitted_s, start_s),
            RequestPhase("prefill", start_s, first_s),
        ]
        return phases if first_s == end_s else [*phases, RequestPhase("decode", first_s, end_s)]
