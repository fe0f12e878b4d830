"""One stream of a run, told iteration by iteration, for the report's picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slackfit.streams.stream_query import Step, StreamOutcome

_LEAST_OUTPUTS = 8
_MOST_STEPS = 600


def stream_timeline(
    outcomes: Sequence[StreamOutcome], steps: Sequence[Step]
) -> dict[str, Any] | None:
    """Return the least fluent of the complete streams with 8 outputs or more, None without one.

    Of equals the one that more widths served, then the longer. Per iteration from its arrival to
    its end: when it began and what it was predicted to take, the stream's own prompt tokens, all
    tokens, budget, slack (None: nobody waited for an output) and width.
    """
    told = [o for o in outcomes if o.is_complete and len(o.output_s) >= _LEAST_OUTPUTS]
    if not told:
        return None
    chosen = min(told, key=lambda o: (o.fluidity, -len(set(o.subnet_ids)), -len(o.output_s)))
    query = chosen.query
    during = [s for s in steps if query.arrival_s <= s.start_s < chosen.finish_s][:_MOST_STEPS]
    return {
        "query_id": query.query_id,
        "fluidity": chosen.fluidity,
        "arrival_s": query.arrival_s,
        "first_deadline_s": query.first_deadline_s,
        "period_s": query.period_s,
        "prompt_tokens": query.prompt_tokens,
        "output_s": list(chosen.output_s),
        "subnet_ids": list(chosen.subnet_ids),
        "steps": {
            "start_s": [step.start_s for step in during],
            "expected_s": [step.expected_s for step in during],
            "own_tokens": [_own(step, query.query_id) for step in during],
            "tokens": [step.num_tokens for step in during],
            "budget": [step.budget for step in during],
            "slack_s": [None if step.slack_s == float("inf") else step.slack_s for step in during],
            "subnet_id": [step.subnet_id for step in during],
        },
    }


def _own(step: Step, query_id: int) -> int:
    """How many prompt tokens of a stream an iteration computed."""
    return sum(
        c.length
        for c in step.chunks
        if c.query_id == query_id and not (c.length == 1 and c.samples)
    )
