"""Open-loop replay of streams: each prompt at its time, every chunk noted, judged by intended send.

As `replay.py` for queries. A stream's tokens are due from the moment at which it was to be sent, so
neither a slow server nor a late generator can hide a delay. Nothing is sent twice: a refusal is an
end. What the client sees has the way back in it; the server's own fluidity is kept beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from slackfit.streams.fluidity import FluidityCount
from slackfit.streams.stream_query import FLUENT, StreamOutcome, StreamQuery
from traces.open_loop.pacing import Clock, MonotonicClock
from traces.open_loop.replay import START_DELAY_S
from traces.open_loop.sender import Progress
from traces.open_loop.stream_target import StreamCall, StreamEnd, StreamModel, StreamTarget

_LEAST_TOKEN = 32  # those below have meanings of their own in many vocabularies
_PROGRESS_S = 0.5
_INTERRUPTED = StreamEnd("failed", "interrupted")


@dataclass(slots=True)
class SeenStream:
    """One stream as its client saw it; seconds from the run's start.

    `chunks` are (when it came, tokens that came with it).
    """

    query: StreamQuery
    sent_s: float
    chunks: list[tuple[float, int]] = field(default_factory=list)
    end: StreamEnd = _INTERRUPTED
    end_s: float = 0.0

    @property
    def lag_s(self) -> float:
        """How late it was sent."""
        return self.sent_s - self.query.arrival_s


async def replay_streams(
    queries: Sequence[StreamQuery],
    target: StreamTarget,
    *,
    seed: int = 0,
    timeout_s: float | None = None,
    clock: Clock | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[SeenStream]:
    """Send each stream at its arrival with a drawn prompt; return what was seen, in order.

    A stream that is not over `timeout_s` after its send (None: never) is `failed`. Cancellation
    ends the run early: what was sent until then is returned, the open ones as `failed`.
    """
    clock = clock or MonotonicClock()
    rng = np.random.default_rng(seed)
    size = target.model.vocab_size
    lowest = min(_LEAST_TOKEN, size // 2)
    start_s = clock.now_s() + START_DELAY_S
    seen: list[SeenStream] = []
    tasks: set[asyncio.Task[None]] = set()
    told = _ReplayProgress(len(queries), seen, progress)
    try:
        for query in queries:
            prompt = tuple(rng.integers(lowest, size, query.prompt_tokens).tolist())
            await clock.sleep_until(start_s + query.arrival_s)
            stream = SeenStream(query, clock.now_s() - start_s)
            seen.append(stream)
            sending = _send(stream, prompt, target, clock, start_s, timeout_s)
            tasks.add(asyncio.create_task(sending))
            told.maybe(clock.now_s())
        while pending := [task for task in tasks if not task.done()]:
            await asyncio.wait(pending, timeout=_PROGRESS_S)
            told.maybe(clock.now_s())
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
    return seen


def as_client_saw(stream: SeenStream, model: StreamModel) -> StreamOutcome:
    """Return a stream's outcome by the times at which its client had the tokens.

    Tokens that came with one chunk came together. A server of one width has quality 1.
    """
    query, qualities = stream.query, model.qualities or {}
    times_s = [at_s for at_s, tokens in stream.chunks for _ in range(tokens)]
    names = [name for name, count in stream.end.widths for _ in range(count)]
    names += [model.name] * (len(times_s) - len(names))
    names = names[: len(times_s)]
    found = [qualities.get(name, 1.0 if not qualities else 0.0) for name in names]
    count = FluidityCount(query.first_deadline_s, query.period_s)
    for at_s, quality in zip(times_s, found, strict=True):
        count.note(at_s, quality)
    status, reason = stream.end.status, stream.end.reason
    if status == "ok":
        is_whole = bool(times_s)
        status = "failed" if not is_whole else "late"
        reason = "" if is_whole else "no token came"
        if is_whole and count.result.index >= FLUENT:
            status = "on_time"
    return StreamOutcome(
        query_id=query.query_id,
        status=status,  # type: ignore[arg-type]
        reason=reason,
        query=query,
        start_s=stream.sent_s,
        finish_s=stream.end_s,
        output_s=tuple(times_s),
        subnet_ids=tuple(names),
        qualities=tuple(found),
        missed=count.missed,
        due=count.due,
        quality_on_time=count.quality,
    )


async def _send(
    stream: SeenStream,
    prompt: tuple[int, ...],
    target: StreamTarget,
    clock: Clock,
    start_s: float,
    timeout_s: float | None,
) -> None:
    query = stream.query

    def on_tokens(count: int) -> None:
        stream.chunks.append((clock.now_s() - start_s, count))

    call = StreamCall(
        prompt,
        query.max_tokens,
        query.first_deadline_s - stream.sent_s,
        query.period_s,
    )
    try:
        async with asyncio.timeout(timeout_s):
            stream.end = await target.stream(call, on_tokens)
    except TimeoutError:
        stream.end = StreamEnd("failed", "timeout")
    finally:
        stream.end_s = clock.now_s() - start_s


class _ReplayProgress:
    """Tells how far a run is, twice a second."""

    def __init__(
        self, total: int, seen: list[SeenStream], progress: Callable[[Progress], None] | None
    ) -> None:
        self._total, self._seen, self._progress = total, seen, progress
        self._next_s = 0.0

    def maybe(self, now_s: float) -> None:
        if self._progress is None or now_s < self._next_s:
            return
        self._next_s = now_s + _PROGRESS_S
        ended = [stream for stream in self._seen if stream.end_s]
        whole = sum(stream.end.status == "ok" for stream in ended)
        self._progress(Progress(len(self._seen), len(ended), whole, self._total))
