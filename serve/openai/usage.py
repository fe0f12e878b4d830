"""The usage object: OpenAI's counts, summed over the texts of a request, and what served them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serve.openai.writing import Writing
from slackfit.streams.stream_query import FLUENT, StreamOutcome


def usage_of(writings: Sequence[Writing]) -> dict[str, Any]:
    """Return the usage of a request so far.

    `supernet` has what served the text, and once it is over how it was judged; of several texts
    their mean quality, and that of each in `choices`.
    """
    prompt = sum(each.stream.query.prompt_tokens for each in writings)
    cached = sum(each.stream.query.cached_tokens for each in writings)
    written = sum(each.num_tokens for each in writings)
    if len(writings) == 1:
        served = _served(writings[0])
    else:
        quality = sum(each.quality for each in writings)
        served = {
            "quality": quality / written if written else 0.0,
            "quality_kind": writings[0].quality_kind,
            "choices": [_served(each) for each in writings],
        }
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": cached},
        "supernet": served,
    }


def _served(writing: Writing) -> dict[str, Any]:
    """Return what served one text: `widths` are runs of outputs that one width computed."""
    served: dict[str, Any] = {
        "widths": writing.widths,
        "quality": writing.quality / writing.num_tokens if writing.num_tokens else 0.0,
        "quality_kind": writing.quality_kind,
    }
    outcome = writing.stream.outcome
    return served if outcome is None else served | judged(outcome)


def judged(outcome: StreamOutcome) -> dict[str, Any]:
    """Return how an ended stream was judged, by the engine's stamps."""
    query, times_s = outcome.query, outcome.output_s
    return {
        "status": outcome.status,
        "fluidity": outcome.fluidity,
        "weighted_fluidity": outcome.weighted_fluidity,
        "is_fluent": outcome.fluidity >= FLUENT,
        "missed_periods": outcome.missed,
        "periods": outcome.due,
        "ttft_ms": round((times_s[0] - query.arrival_s) * 1e3, 3) if times_s else None,
        "queue_ms": None
        if outcome.start_s is None
        else round((outcome.start_s - query.arrival_s) * 1e3, 3),
        "preemptions": outcome.preemptions,
    }
