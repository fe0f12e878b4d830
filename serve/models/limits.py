"""Refusals: one table of reasons with their HTTP and gRPC status, and the error that carries one.

Every answer that is not an output names one of these reasons. `REASONS` is the only place that
says which status a reason has, at either door.
"""

from __future__ import annotations

from typing import NamedTuple

from serve.engine.runner import NOT_FINITE
from serve.engine.served_engine import EarliestAnswer
from slackfit.profile import LatencyProfile
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
    "accuracy_floor": ReasonCode(400, "INVALID_ARGUMENT"),
    "too_long": ReasonCode(400, "INVALID_ARGUMENT"),  # a prompt, beyond the longest context
    "unsupported": ReasonCode(400, "INVALID_ARGUMENT"),
    "unauthenticated": ReasonCode(401, "UNAUTHENTICATED"),
    "forbidden": ReasonCode(403, "PERMISSION_DENIED"),
    "unknown_model": ReasonCode(404, "NOT_FOUND"),
    "unknown_path": ReasonCode(404, "UNIMPLEMENTED"),
    "method_not_allowed": ReasonCode(405, "UNIMPLEMENTED"),
    "several_replicas": ReasonCode(409, "FAILED_PRECONDITION"),
    "too_slow": ReasonCode(408, "DEADLINE_EXCEEDED"),
    "too_large": ReasonCode(413, "RESOURCE_EXHAUSTED"),  # what gRPC itself says of a long message
    "unsupported_encoding": ReasonCode(415, "UNIMPLEMENTED"),  # as gRPC says of compressed ones
    "queue_full": ReasonCode(429, "RESOURCE_EXHAUSTED"),
    "rate_limited": ReasonCode(429, "RESOURCE_EXHAUSTED"),
    "head_too_large": ReasonCode(431, "RESOURCE_EXHAUSTED"),
    "cancelled": ReasonCode(499, "CANCELLED"),
    "execution_failed": ReasonCode(500, "INTERNAL"),
    "internal": ReasonCode(500, "INTERNAL"),
    "device_failed": ReasonCode(503, "UNAVAILABLE"),
    "not_ready": ReasonCode(503, "UNAVAILABLE"),
    "draining": ReasonCode(503, "UNAVAILABLE"),
    "too_many_connections": ReasonCode(503, "UNAVAILABLE"),
    "infeasible": ReasonCode(504, "DEADLINE_EXCEEDED"),
    "expired": ReasonCode(504, "DEADLINE_EXCEEDED"),
}

_LONGEST_TEXT = 4000  # what a request held comes back in it; gRPC's trailers have 8 KiB
_RESTART_S = 1.0  # how soon another replica, or this one once it is warm, may answer
_TEXTS = {
    "queue_full": "the queue is full",
    "not_ready": "the model is not ready yet",
    "draining": "the server is shutting down and takes no new queries",
    "infeasible": "answer before the deadline",  # behind who can't
    "expired": "the deadline passed before an answer was ready",
    "execution_failed": "the model failed on this batch; the server's log has it",
    "device_failed": "the device no longer answers; this server will be replaced",
    "cancelled": "the query was withdrawn",
    "unknown_subnet": "the subnet is not offered",
}


class RefusedError(Exception):
    """A request that gets no output: a reason of `REASONS`, a text, when to try again.

    `earliest_finish_s` is how long from now an answer would take at the earliest, as predicted;
    `retry_after_s` is 0 where a retry is of no use.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        status: str = "rejected",
        retry_after_s: float = 0.0,
        earliest_finish_s: float | None = None,
    ) -> None:
        message = message if len(message) <= _LONGEST_TEXT else f"{message[:_LONGEST_TEXT]}..."
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.status = status
        self.retry_after_s = retry_after_s
        self.earliest_finish_s = earliest_finish_s

    @property
    def http_status(self) -> int:
        """The HTTP status of the reason."""
        return REASONS[self.reason].http

    def details(self) -> dict[str, str | float]:
        """Return what a program needs: the same names at both doors."""
        details: dict[str, str | float] = {"reason": self.reason, "status": self.status}
        if self.retry_after_s:
            details["retry_after_s"] = round(self.retry_after_s, 4)
        if self.earliest_finish_s is not None:
            details["earliest_finish_s"] = round(self.earliest_finish_s, 4)
        return details


def check_floor(floor: float, subnet_id: str | None, profile: LatencyProfile) -> None:
    """Raise RefusedError, `accuracy_floor`, for a floor that no subnet it may have reaches.

    That is no missed deadline: the same again is of no use, however long it may take.
    """
    if not floor:
        return
    given = f"parameter min_accuracy is {floor:g}"
    if subnet_id is None:
        best = max(profile.subnets, key=lambda subnet: subnet.accuracy)
        if floor > best.accuracy:
            allowed = f"{best.accuracy:.6g} or less: what {best.subnet_id} has, the most accurate"
            raise RefusedError("accuracy_floor", f"{given}, allowed {allowed} subnet offered")
    elif subnet_id in profile.subnet_ids and floor > profile.accuracy(subnet_id):
        accuracy = profile.accuracy(subnet_id)
        text = f"{given}, the pinned subnet {subnet_id} has {accuracy:.6g}: give one of the two"
        raise RefusedError("accuracy_floor", text)


def wish_text(floor: float, subnet_id: str | None) -> str:
    """Return which subnets a request may have, as a refusal names them."""
    if subnet_id is not None:
        return f"the pinned subnet {subnet_id:.80} can not"
    return f"no subnet of accuracy {floor:g} or more can" if floor else "no subnet can"


def refusal_of(
    outcome: Outcome, earliest: EarliestAnswer, wish: str = "no subnet can"
) -> RefusedError:
    """Turn the end of a query that has no output into the refusal that its client gets.

    `wish` says which subnets it might have had, see `wish_text`.
    """
    if outcome.status == "failed" and outcome.reason != "device_failed":
        text = _TEXTS["execution_failed"]
        if outcome.reason.endswith(NOT_FINITE):
            text = f"{NOT_FINITE}, of which nothing can be made"
        return RefusedError("execution_failed", text, status="failed")
    if outcome.status == "late":
        return RefusedError("expired", _TEXTS["expired"], status="late")
    given_s = outcome.deadline_s - outcome.arrival_s
    retry_after_s = 0.0
    if outcome.reason in ("draining", "not_ready", "device_failed"):
        retry_after_s = _RESTART_S
    is_load = outcome.reason in ("queue_full", "infeasible", "expired")
    if is_load and (outcome.reason == "queue_full" or given_s > earliest.idle_finish_s):
        retry_after_s = earliest.finish_s
    text = _TEXTS[outcome.reason]
    return RefusedError(
        outcome.reason,
        f"{wish} {text}" if outcome.reason == "infeasible" else text,
        status=outcome.status,
        retry_after_s=retry_after_s,
        earliest_finish_s=earliest.finish_s if is_load else None,
    )
