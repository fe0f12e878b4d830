"""What an iteration's time consists of: its pieces, timed within the iteration itself.

The share of each piece says what keeps half the width from costing what its bytes say: attention
over what is cached, its linear layers, the head, and what lies between them do not depend on the
width. Pieces called by themselves would find their weights and keys in faster caches than an
iteration does, so here a stopwatch is read where one piece ends and the next begins, and the shares
add up to the whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from serve.bench.rows import Row, row
from subnetact.decoding.decoder_weights import Layer, SkippedLayer
from subnetact.decoding.ragged_batch import Chunk
from subnetact.decoding.stream_executor import StreamExecutor

PIECES: tuple[str, ...] = (
    "planning",
    "norms",
    "attention_linear",
    "attention",
    "feed_forward",
    "head",
)
_LEAST_ROUNDS = 9
_Call = Callable[[torch.Tensor], torch.Tensor]


def occupy(executor: StreamExecutor, chunks: Sequence[Chunk], context: int) -> None:
    """Let each chunk's stream have `context` tokens in the cache, whatever they are."""
    table = executor.cache.table
    for chunk in chunks:
        executor.release(chunk.sequence)
        table.reserve(chunk.sequence, context)
        table.advance(chunk.sequence, context)


def piece_rows(
    figure: str,
    executor: StreamExecutor,
    subnet_id: str,
    *,
    decodes: int,
    context: int,
    at_least_s: float,
) -> list[Row]:
    """Return the share of an iteration of `decodes` behind `context` tokens that each piece takes.

    `figure` is what the rows' names begin with. `planning` is what comes before the first layer and
    after the head, `norms` norms and additions, `attention` also rotary positions and writing keys.
    """
    chunks = [Chunk(i, (1,)) for i in range(decodes)]
    rounds: list[dict[str, float]] = []
    start_s = time.perf_counter()
    for number in range(-2, 10_000):
        occupy(executor, chunks, context)
        taken_s = timed_pieces(executor, subnet_id, chunks)
        if number >= 0:
            rounds.append(taken_s)
        if len(rounds) >= _LEAST_ROUNDS and time.perf_counter() - start_s >= at_least_s:
            break
    whole_s = [sum(taken_s.values()) for taken_s in rounds]
    detail = (
        f"{decodes} decodes behind {context} tokens, 1 thread, {executor.packing}; of a median of "
        f"{median(whole_s) * 1e3:.3f} ms; {len(rounds)} rounds"
    )
    return [
        row(
            f"{figure}/share/{piece}",
            median(taken_s[piece] / all_s for taken_s, all_s in zip(rounds, whole_s, strict=True)),
            "ratio",
            detail,
        )
        for piece in PIECES
    ]


def timed_pieces(
    executor: StreamExecutor, subnet_id: str, chunks: Sequence[Chunk]
) -> dict[str, float]:
    """Run one iteration; return the seconds of each piece, which add up to those of `run`."""
    weights, watch = executor.weights, _Stopwatch()
    timed_id, head = f"{subnet_id} timed", weights.head
    weights.subnets[timed_id] = tuple(map(watch.layer, weights.subnets[subnet_id]))
    weights.head = watch.around("norms", head, "head")
    try:
        watch.start()
        executor.run(timed_id, chunks)
        watch.charge("planning")
    finally:
        weights.head = head
        del weights.subnets[timed_id]
    return watch.seconds


class _Stopwatch:
    """Charges the time since it was last read to a piece."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PIECES, 0.0)
        self._last_s = 0.0
        self._is_first = True

    def start(self) -> None:
        self._last_s = time.perf_counter()

    def charge(self, piece: str) -> None:
        now_s = time.perf_counter()
        # The first norm comes right behind the planning: too short to be told apart.
        self.seconds["planning" if self._is_first else piece] += now_s - self._last_s
        self._last_s, self._is_first = now_s, False

    def around(self, before: str, call: _Call, piece: str) -> _Call:
        """A call that charges what came before it to one piece and itself to another."""

        def timed(x: torch.Tensor) -> torch.Tensor:
            self.charge(before)
            result = call(x)
            self.charge(piece)
            return result

        return timed

    def layer(self, layer: Layer | SkippedLayer) -> Layer | SkippedLayer:
        """The layer with a stopwatch around each of its linear layers."""
        if isinstance(layer, SkippedLayer):
            return layer._replace(kv=self.around("norms", layer.kv, "attention_linear"))
        heads = layer.heads._replace(
            q_kv=self.around("norms", layer.heads.q_kv, "attention_linear"),
            proj=self.around("attention", layer.heads.proj, "attention_linear"),
        )
        timed: _Call = self.around("norms", layer.feed_forward, "feed_forward")
        return layer._replace(heads=heads, feed_forward=timed)
