"""`OpenStream`: one stream as the door holds it: its outputs as they come, then how it ended."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from serve.engine.streams.stream_device import Choose, SharedPrefix, greedy
from slackfit.streams.stream_query import StreamOutcome, StreamQuery

MOST_UNREAD_BYTES = 2**20
"""What the outputs of one stream may hold that its reader has not taken."""
OUTPUT_BYTES = 200  # an output that waits: its tuple, its time


class StreamOutput(NamedTuple):
    """One output: its token, when the device had it, and the width that computed it."""

    token: int
    at_s: float
    subnet_id: str
    quality: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRequest:
    """What a client asks: a prompt in token ids, how many outputs, when they are due.

    Times are on the engine's clock: the first output is due at `first_deadline_s`, `deadline_s` is
    a hard end. `choose` samples a token; one of `end_tokens` is the last, and one of which `ends`,
    asked for each on the device thread, says so. What is `shared` of the
    prompt is not computed again. An output that waits for its reader holds `output_bytes`.
    `on_end` is told how the stream ended, on the thread that delivers; it raises nothing.
    """

    prompt: Sequence[int]
    max_tokens: int
    arrival_s: float
    first_deadline_s: float
    period_s: float
    deadline_s: float = inf
    min_quality: float = 0.0
    query_class: int = 0
    tenant: str = ""
    shared: SharedPrefix | None = None
    choose: Choose = greedy
    end_tokens: frozenset[int] = frozenset()
    ends: Callable[[int], bool] | None = None
    output_bytes: int = OUTPUT_BYTES
    on_end: Callable[[StreamOutcome], None] | None = None

    def query(self, query_id: int) -> StreamQuery:
        """Return the token that the scheduler knows it by."""
        return StreamQuery(
            query_id,
            self.arrival_s,
            len(self.prompt),
            self.max_tokens,
            self.first_deadline_s,
            self.period_s,
            self.deadline_s,
            self.min_quality,
            self.query_class,
            self.tenant,
            0 if self.shared is None else self.shared.tokens,
        )


class NewsWaiter:
    """Where a task waits for news of streams; used in one event loop, by one at a time."""

    def __init__(self) -> None:
        """Nobody waits yet."""
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self, withdraw: Callable[[], None]) -> None:
        """Return at the next `wake`.

        A task that is cancelled meanwhile calls `withdraw` first: its client has gone.
        """
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            withdraw()
            raise
        finally:
            self._waiter = None

    def wake(self) -> None:
        """Tell who waits, if anybody does, that there is news."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class OpenStream:
    """An asynchronous iterator over a stream's outputs; touched on one thread only.

    When it is exhausted, `outcome` says how the stream ended. Outputs that nobody takes wait, so a
    slow reader holds nobody up, until they hold `MOST_UNREAD_BYTES`: then the stream ends as
    `too_slow`, and its place is another's.
    """

    def __init__(
        self,
        query: StreamQuery,
        request: StreamRequest,
        on_cancel: Callable[[OpenStream, str], None],
    ) -> None:
        """Begin without outputs."""
        self.query = query
        self.request = request
        self.outcome: StreamOutcome | None = None
        self._on_cancel = on_cancel
        self._outputs: deque[StreamOutput] = deque()
        self._news = NewsWaiter()
        self._watcher: Callable[[], None] | None = None

    def __aiter__(self) -> OpenStream:
        return self

    async def __anext__(self) -> StreamOutput:
        """Return the next output; the waiting task's cancellation withdraws the stream."""
        while not self._outputs:
            if self.outcome is not None:
                raise StopAsyncIteration
            await self._news.wait(self.cancel)
        return self._outputs.popleft()

    def waiting(self) -> list[StreamOutput]:
        """Take the outputs that wait already, without waiting for any."""
        outputs = list(self._outputs)
        self._outputs.clear()
        return outputs

    def watch(self, watcher: Callable[[], None]) -> None:
        """Have `watcher` called whenever there is an output, or the end, and now if there is."""
        if self.outcome is None:
            self._watcher = watcher
        if self._outputs or self.outcome is not None:
            watcher()

    @property
    def has_waiting(self) -> bool:
        """Whether outputs wait."""
        return bool(self._outputs)

    def cancel(self, reason: str = "cancelled") -> None:
        """Withdraw the stream, the client has gone; one that has ended is left as it is."""
        if self.outcome is None:
            self._on_cancel(self, reason)

    def put(self, output: StreamOutput) -> None:
        """Take an output from the engine; one after the end comes too late."""
        if self.outcome is not None:
            return
        self._outputs.append(output)
        self._wake()
        if len(self._outputs) * self.request.output_bytes > MOST_UNREAD_BYTES:
            self.cancel("too_slow")

    def end(self, outcome: StreamOutcome) -> None:
        """Take the outcome from the engine, once."""
        assert self.outcome is None, "a stream ended twice"
        self.outcome = outcome
        self._wake()
        self._watcher = None  # which knows the stream: a cycle would hold its prompt
        if self.request.on_end is not None:
            self.request.on_end(outcome)

    def _wake(self) -> None:
        if self._watcher is not None:
            self._watcher()
        self._news.wake()
