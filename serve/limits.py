"""Refusals: one table of reasons with their HTTP status, and the error that carries one.

Every answer that is not an output names one of these reasons. `REASONS` is the only place that
says which status a reason has; the gRPC codes beside them are for the second door.
"""

from __future__ import annotations

from typing import NamedTuple

from slackfit.query import Outcome


class ReasonCode(NamedTuple):
    """How a reason travels: HTTP status, gRPC status name."""

    http: int
    grpc: str


REASONS: dict[str, ReasonCode] = {
    "bad_request": ReasonCode(400, "INVALID_ARGUMENT"),
    "bad_tensor": ReasonCode(400, "INVALID_ARGUMENT"),
    "bad_deadline": ReasonCode(400, "INVALID_ARGUMENT"),
    "unknown_subnet": ReasonCode(400, "INVALID_ARGUMENT"),
    "forbidden": ReasonCode(403, "PERMISSION_DENIED"),
    "unknown_model": ReasonCode(404, "NOT_FOUND"),
    "too_large": ReasonCode(413, "INVALID_ARGUMENT"),
    "queue_full": ReasonCode(429, "RESOURCE_EXHAUSTED"),
    "cancelled": ReasonCode(499, "CANCELLED"),
    "execution_failed": ReasonCode(500, "INTERNAL"),
    "internal": ReasonCode(500, "INTERNAL"),
    "not_ready": ReasonCode(503, "UNAVAILABLE"),
    "draining": ReasonCode(503, "UNAVAILABLE"),
    "infeasible": ReasonCode(504, "DEADLINE_EXCEEDED"),
    "expired": ReasonCode(504, "DEADLINE_EXCEEDED"),
}

_TEXTS = {
    "queue_full": "the queue is full",
    "not_ready": "the model is not ready yet",
    "draining": "the server is shutting down and takes no new queries",
    "infeasible": "no subnet can answer before the deadline",
    "expired": "the deadline passed before an answer was ready",
    "cancelled": "the query was withdrawn",
    "unknown_subnet": "the subnet is not offered",
}


class RefusedError(Exception):
    """A request that gets no output: a reason of `REASONS`, a text, when to try again."""

    def __init__(
        self, reason: str, message: str, *, status: str = "rejected", retry_after_s: float = 0.0
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def http_status(self) -> int:
        """The HTTP status of the reason."""
        return REASONS[self.reason].http


def refusal_of(outcome: Outcome, *, retry_after_s: float) -> RefusedError:
    """Turn the end of a query that has no output into the refusal that its client gets."""
    if outcome.status == "failed":
        return RefusedError("execution_failed", outcome.reason, status="failed")
    if outcome.status == "late":
        return RefusedError("expired", _TEXTS["expired"], status="late")
    may_retry = outcome.reason in ("queue_full", "draining", "not_ready")
    return RefusedError(
        outcome.reason,
        _TEXTS[outcome.reason],
        status=outcome.status,
        retry_after_s=retry_after_s if may_retry else 0.0,
    )
