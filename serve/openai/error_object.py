"""Refusals in OpenAI's form: one object before a stream or inside of it, and what clients act on.

`code` is a reason of `models/limits.py`, or the word that OpenAI has for it; `reason` is always
ours. The official client tries again by the status alone unless it is told: `x-should-retry`.
"""

from __future__ import annotations

import json
import math
from typing import Any

from serve.doors.http_answer import HttpAnswer
from serve.models.limits import RefusedError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    429: "rate_limit_error",
    499: "cancelled_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
_BAD = "invalid_request_error"
_CODES = {
    "unknown_model": "model_not_found",
    "too_long": "context_length_exceeded",
    "unauthenticated": "invalid_api_key",
    "rate_limited": "rate_limit_exceeded",
}


class FieldError(RefusedError):
    """A request whose field `param` is not what it may be."""

    def __init__(self, param: str, message: str, reason: str = "bad_request") -> None:
        super().__init__(reason, message)
        self.param = param


def error_object(error: RefusedError) -> dict[str, Any]:
    """Return `{"error": {...}}` with OpenAI's four fields and ours."""
    return {
        "error": {
            "message": error.message,
            "type": _TYPES.get(error.http_status, _BAD),
            "param": getattr(error, "param", None),
            "code": _CODES.get(error.reason, error.reason),
            **error.details(),
        }
    }


def error_answer(error: RefusedError, *, is_closing: bool = False) -> HttpAnswer:
    """Return the answer that a refusal is before anything was sent."""
    retry_s = error.retry_after_s
    headers = [(b"x-should-retry", b"true" if retry_s else b"false")]
    if retry_s:
        headers.append((b"retry-after", b"%d" % math.ceil(retry_s)))
        headers.append((b"retry-after-ms", b"%d" % math.ceil(retry_s * 1e3)))
    if error.reason == "unauthenticated":
        headers.append((b"www-authenticate", b"Bearer"))
    if error.reason == "unsupported_encoding":
        headers.append((b"accept-encoding", b"identity"))
    if is_closing:
        headers.append((b"connection", b"close"))
    body = json.dumps(error_object(error)).encode()
    return HttpAnswer(error.http_status, body, headers=tuple(headers))
