"""`drawn_texts`: texts that a decoder makes from nothing, many at a time.

What a decoder is healed on: text as broad as what it was trained on, which needs no file. Each text
is drawn with a seed of its own, so it does not depend on how many are drawn at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from subnetact.decoding.ragged_batch import Chunk
from subnetact.decoding.sampling import Sampling
from subnetact.decoding.stream_executor import StreamExecutor

AT_ONCE = 32
_SEEDS = 2**32  # of texts to one seed of the run


def drawn_texts(
    executor: StreamExecutor,
    first_ids: Sequence[int],
    *,
    subnet_id: str,
    count: int,
    max_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    eos_ids: Sequence[int] = (),
    at_once: int = AT_ONCE,
) -> Iterator[list[int]]:
    """Yield `count` texts of at most `max_tokens` ids as they end, without the ids around them.

    Text i begins behind `first_ids[i % len(first_ids)]`. The cache must have room for `at_once`
    texts. Raises ValueError where nothing could be drawn: no first id, a count below 1; for
    texts that are longer than the network's longest context; and for a seed beyond 32 bits.
    """
    _check(first_ids, min(count, max_tokens, at_once), max_tokens, executor.max_positions)
    if not 0 <= seed < _SEEDS:
        raise ValueError(f"seed is {seed}, of texts allowed 0 to {_SEEDS - 1}")
    samplings = [Sampling(temperature, seed * _SEEDS + i) for i in range(count)]
    running: dict[int, list[int]] = {}
    waiting = iter(range(count))
    try:
        while True:
            for i in islice(waiting, at_once - len(running)):
                running[i] = [first_ids[i % len(first_ids)]]
            if not running:
                return
            chunks = [Chunk(i, (ids[-1],)) for i, ids in running.items()]
            logits = executor.run(subnet_id, chunks)
            for i, row in zip(list(running), logits, strict=True):
                ids = running[i]
                chosen = samplings[i].choose(row, len(ids))
                has_ended = chosen in eos_ids and len(ids) > 1
                if not has_ended:
                    ids.append(chosen)
                if has_ended or len(ids) > max_tokens:
                    executor.release(i)
                    yield running.pop(i)[1:]
    finally:
        for i in running:
            executor.release(i)


def _check(first_ids: Sequence[int], least: int, max_tokens: int, longest: int) -> None:
    if not first_ids or least < 1:
        raise ValueError("texts are drawn behind at least one first id, and 1 or more of them")
    if max_tokens > longest:
        raise ValueError(
            f"texts of {max_tokens} tokens are asked for, allowed {longest} (the network's longest "
            "context)"
        )
