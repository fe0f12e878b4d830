"""What a replay of streams needs of a server: one call that tells tokens as they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol


class StreamCall(NamedTuple):
    """A prompt of token ids, how many tokens are to come, and when (seconds from the send)."""

    prompt: tuple[int, ...]
    max_tokens: int
    ttft_s: float
    tpot_s: float


class StreamEnd(NamedTuple):
    """How a stream ended as its client saw it.

    `status` is `ok` for a whole one, else `rejected`, `dropped` or `failed` with a `reason`.
    `widths` are runs of tokens by what computed them, in order, empty where the server says none.
    `fluidity` is what the server itself found, None where it does not say.
    """

    status: str
    reason: str = ""
    widths: tuple[tuple[str, int], ...] = ()
    fluidity: float | None = None


class StreamModel(NamedTuple):
    """What is known of the server's model: what it says of itself, defaults where it says nothing.

    Token ids are drawn below `vocab_size`; `qualities` are those of its widths, empty: it has one.
    """

    name: str
    vocab_size: int
    policy: str = ""
    qualities: dict[str, float] | None = None
    quality_kind: str = "not told"


class StreamTarget(Protocol):
    """A server of streams, many at once."""

    @property
    def model(self) -> StreamModel: ...

    async def stream(self, call: StreamCall, on_tokens: Callable[[int], None]) -> StreamEnd:
        """Send one call; `on_tokens` is told of every chunk how many tokens came with it."""
        ...

    async def close(self) -> None: ...
