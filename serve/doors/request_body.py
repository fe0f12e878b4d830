"""Reading the body of an HTTP request: bounded in bytes, of its own and of all, and in time."""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request

from serve.doors.body_budget import InflightBody
from serve.models.limits import RefusedError


async def read_body(request: Request, max_bytes: int, inflight: InflightBody) -> bytes:
    """Read the body, refusing it before it is read whole when it is larger than allowed.

    Its bytes are taken from the server's budget as they come. Raises RefusedError.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(int(declared), max_bytes)
    chunks: list[bytes] = []
    size = 0
    try:
        async with inflight.arriving():
            async for chunk in request.stream():
                if not chunk:
                    continue
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large(size, max_bytes)
                await inflight.take(len(chunk))
                chunks.append(chunk)
    except ClientDisconnect:
        raise RefusedError("cancelled", "the client has gone", status="dropped") from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(size: int, max_bytes: int) -> RefusedError:
    return RefusedError(
        "too_large", f"the body has {size} bytes or more, allowed {max_bytes} (max_body_bytes)"
    )
