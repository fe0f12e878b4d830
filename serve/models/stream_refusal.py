"""Why a stream gave no whole text, as its client is told."""

from __future__ import annotations

from serve.engine.runner import NOT_FINITE
from serve.models.limits import RefusedError
from slackfit.streams.stream_query import StreamOutcome

_RESTART_S = 1.0  # how soon another replica, or this one once it is warm, may answer
_RETRY_S = 0.5
_TEXTS = {
    "queue_full": "as many streams wait as may (max_queue)",
    "not_ready": "the model is not ready yet",
    "draining": "the server is shutting down: it takes no new streams and ends those that last",
    "device_failed": "the device no longer answers; this server will be replaced",
    "cancelled": "the stream was withdrawn",
    "too_slow": "the client reads too little of it: what waits for it is too much",
}


def stream_refusal(outcome: StreamOutcome, kv_tokens: int) -> RefusedError:
    """Turn the end of a stream that is not whole into what its client is told."""
    query, status, reason = outcome.query, outcome.status, outcome.reason
    done = f"{len(outcome.output_s)} of at most {query.max_tokens} tokens had come"
    if status == "failed" and reason != "device_failed":
        text = f"the model failed on this stream; the server's log has it ({done})"
        if reason.endswith(NOT_FINITE):
            text = f"{NOT_FINITE}, of which nothing can be made ({done})"
        return RefusedError("execution_failed", text, status=status)
    if reason == "too_long":
        whole = query.prompt_tokens + query.max_tokens
        text = (
            f"prompt and output are up to {whole} tokens, allowed {kv_tokens} "
            "(kv_tokens, the memory of all streams together)"
        )
        return RefusedError("too_long", text)
    if reason == "infeasible":
        text = f"min_quality is {query.min_quality:g}, and no width that is offered is as good"
        return RefusedError("accuracy_floor", text)
    if reason == "expired":
        given_s = query.deadline_s - query.arrival_s
        text = f"the time limit of {given_s:g} s passed when {done}"
        return RefusedError("expired", text, status=status, retry_after_s=_RETRY_S)
    retry_s = {"queue_full": _RETRY_S, "cancelled": 0.0, "too_slow": 0.0}.get(reason, _RESTART_S)
    text = _TEXTS.get(reason, reason)
    if outcome.output_s:
        text += f" ({done})"
    known = reason if reason in _TEXTS else "internal"
    return RefusedError(known, text, status=status, retry_after_s=retry_s)
