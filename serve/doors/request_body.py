"""Reading the body of an HTTP request: bounded in bytes, of its own and of all, and in time."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import Receive

from serve.doors.body_budget import InflightBody
from serve.models.limits import RefusedError


async def read_body(
    receive: Receive,
    max_bytes: int,
    inflight: InflightBody,
    *,
    check_after_bytes: int | None = None,
    check: Callable[[bytes], None] = lambda begun: None,
) -> bytes:
    """Read the body, refusing it before it is read whole when it is larger than allowed.

    Its bytes are taken from the server's budget as they come. `check` is called with what there is
    once that is more than `check_after_bytes`, and may refuse the rest. Raises RefusedError.
    """
    chunks: list[bytes] = []
    size = 0
    async with inflight.arriving():
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RefusedError("cancelled", "the client has gone", status="dropped")
            chunk, more = message.get("body", b""), message.get("more_body", False)
            if not chunk:
                continue
            size += len(chunk)
            if size > max_bytes:
                raise _too_large(size, max_bytes)
            await inflight.take(len(chunk))
            chunks.append(chunk)
            if check_after_bytes is not None and size > check_after_bytes:
                check(b"".join(chunks))
                check_after_bytes = None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def check_size(size: str, max_bytes: int) -> None:
    """Raise RefusedError, `too_large`, for a body that is announced to be larger than allowed."""
    if size.isdigit() and int(size) > max_bytes:
        raise _too_large(int(size), max_bytes)


def _too_large(size: int, max_bytes: int) -> RefusedError:
    return RefusedError(
        "too_large", f"the body has {size} bytes or more, allowed {max_bytes} (max_body_bytes)"
    )
