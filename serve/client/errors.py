"""What `serve.client` raises: one class per kind of end, all with the server's own words.

`InferError` is any query without an output; catch it, or a class below it. `reason` is the
server's (the table of `models/limits.py`), or one of ours where no word of the server came:
`connection`, `timeout`, `unreadable`, `http_NNN`, `grpc_CODE`.
"""

from __future__ import annotations

from serve.client.rest_answers import ClientError, Refusal


class InferError(ClientError):
    """A query ended without an output.

    `status` is how (`rejected`, `dropped`, `late`, `failed`), `reason` why. `earliest_finish_s` is
    how long an answer would have taken at the earliest, as the server predicted; `retry_after_s`
    when to retry (0: it did not say, or the same again is of no use). `num_retries` counts the
    attempts beyond the first.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(
            f"{refusal.reason}: {refusal.message}" if refusal.message else refusal.reason
        )
        self.status = refusal.status
        self.reason = refusal.reason
        self.message = refusal.message
        self.retry_after_s = refusal.retry_after_s
        self.earliest_finish_s = refusal.earliest_finish_s
        self.num_retries = 0


class BadRequestError(InferError):
    """The request is malformed, too; the text says what is allowed."""


class UnknownSubnetError(BadRequestError):
    """The pinned subnet is not offered."""


class UnknownModelError(InferError):
    """The server does not serve that model."""


class ForbiddenError(InferError):
    """The server does not let this client do that."""


class TooLargeError(InferError):
    """The request is larger than the server takes."""


class OverloadError(InferError):
    """The load is the cause: retrying at once would feed it; see `retry_after_s`."""


class QueueFullError(OverloadError):
    """Too many queries wait."""


class InfeasibleError(OverloadError):
    """No subnet could answer before the deadline; `earliest_finish_s` says what could be."""


class ExpiredError(OverloadError):
    """The deadline passed before an answer was ready."""


class UnavailableError(InferError):
    """This server does not serve now, another one may: retried within the slack."""


class NotReadyError(UnavailableError):
    """The server is starting up."""


class DrainingError(UnavailableError):
    """The server is shutting down."""


class DeviceFailedError(UnavailableError):
    """The device of that server no longer answers."""


class ConnectionLostError(UnavailableError):
    """The connection could not be made, or broke before the answer."""


class ModelFailedError(InferError):
    """The model, or the server itself, failed on this query."""


class TimedOutError(InferError, TimeoutError):
    """No answer came within `timeout_s`."""


class UnreadableAnswerError(InferError):
    """The answer is not in the protocol's form."""


_BY_REASON: dict[str, type[InferError]] = {
    "unknown_subnet": UnknownSubnetError,
    "several_replicas": BadRequestError,
    "queue_full": QueueFullError,
    "infeasible": InfeasibleError,
    "expired": ExpiredError,
    "not_ready": NotReadyError,
    "draining": DrainingError,
    "device_failed": DeviceFailedError,
    "too_many_connections": UnavailableError,
    "too_large": TooLargeError,
    "head_too_large": TooLargeError,
    "unknown_path": BadRequestError,
    "connection": ConnectionLostError,
    "timeout": TimedOutError,
    "unreadable": UnreadableAnswerError,
}
_BY_CODE: dict[int | str, type[InferError]] = {
    400: BadRequestError,
    "INVALID_ARGUMENT": BadRequestError,
    401: ForbiddenError,
    403: ForbiddenError,
    "UNAUTHENTICATED": ForbiddenError,
    "PERMISSION_DENIED": ForbiddenError,
    404: UnknownModelError,
    "NOT_FOUND": UnknownModelError,
    408: ExpiredError,
    405: BadRequestError,
    413: TooLargeError,
    415: BadRequestError,
    "UNIMPLEMENTED": BadRequestError,
    431: TooLargeError,
    429: OverloadError,
    "RESOURCE_EXHAUSTED": OverloadError,
    500: ModelFailedError,
    "INTERNAL": ModelFailedError,
    504: ExpiredError,
    "DEADLINE_EXCEEDED": ExpiredError,
}
_BROKEN = frozenset({500, 502, 503, "UNAVAILABLE"})  # a proxy's, when what is behind it has died


def refusal_error(refusal: Refusal, code: int | str) -> InferError:
    """Return the error for a refusal; `code` is its HTTP status or the name of its gRPC code.

    A server of ours names its reason. One that names none is a proxy or of others: what means that
    whoever should have answered is gone reads as a lost connection, the rest by its code.
    """
    if refusal.reason:
        kind = _BY_REASON.get(refusal.reason) or _BY_CODE.get(code, InferError)
        return kind(refusal)
    is_rpc = isinstance(code, str)
    named = refusal._replace(status="failed", reason=f"grpc_{code}" if is_rpc else f"http_{code}")
    if code in _BROKEN:
        return ConnectionLostError(named)
    return _BY_CODE.get(code, InferError)(named)


def connection_lost(message: str) -> ConnectionLostError:
    """Return the error for a connection that could not be made or broke."""
    return ConnectionLostError(Refusal("failed", "connection", message))


def timed_out(timeout_s: float) -> TimedOutError:
    """Return the error for a query that was given up after `timeout_s`."""
    return TimedOutError(Refusal("failed", "timeout", f"no answer within {timeout_s:g} s"))


def unreadable_answer(why: str) -> UnreadableAnswerError:
    """Return the error for an answer that nobody can read."""
    return UnreadableAnswerError(Refusal("failed", "unreadable", f"the answer: {why}"))
