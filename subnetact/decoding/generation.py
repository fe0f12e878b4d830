"""`generate`: the text of one prompt, token by token, at a width that may change on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from subnetact.decoding.ragged_batch import Chunk
from subnetact.decoding.sampling import Sampling
from subnetact.decoding.stream_executor import StreamExecutor

_CHUNK_TOKENS = 256  # of a prompt in one iteration: bounds what an iteration holds


class Switch(NamedTuple):
    """From output token `at` (the first is 0) on, this subnet runs."""

    at: int
    subnet_id: str


def subnet_at(switches: Sequence[Switch], subnet_id: str, token: int) -> str:
    """Which subnet makes output token `token`: that of the latest switch, else `subnet_id`."""
    due = [switch for switch in switches if switch.at <= token]
    return max(due, key=lambda switch: switch.at).subnet_id if due else subnet_id


def generate(
    executor: StreamExecutor,
    prompt: Sequence[int],
    *,
    subnet_id: str,
    max_tokens: int,
    sampling: Sampling | None = None,
    eos_ids: Sequence[int] = (),
    switches: Sequence[Switch] = (),
) -> Iterator[int]:
    """Yield the ids that follow a prompt: until one that ends it (not yielded), or `max_tokens`.

    The subnet that makes the first token also reads the prompt. Raises ValueError for an empty
    prompt, or one that leaves no room for a token; fewer than `max_tokens` come where the network's
    longest context ends.
    """
    if not prompt:
        raise ValueError("the prompt is empty; give a text of one token or more")
    if len(prompt) > executor.max_positions:
        raise ValueError(
            f"the prompt has {len(prompt)} tokens, allowed {executor.max_positions} "
            "(the network's longest context)"
        )
    sampling = sampling or Sampling()
    room = min(max_tokens, executor.max_positions - len(prompt) + 1)
    unread = tuple(prompt)
    name = "generate"
    try:
        for token in range(room):
            current = subnet_at(switches, subnet_id, token)
            while len(unread) > _CHUNK_TOKENS:
                executor.run(current, [Chunk(name, unread[:_CHUNK_TOKENS], samples=False)])
                unread = unread[_CHUNK_TOKENS:]
            logits = executor.run(current, [Chunk(name, unread)])[0]
            chosen = sampling.choose(logits, len(prompt) + token)
            if chosen in eos_ids:
                return
            yield chosen
            unread = (chosen,)
    finally:
        executor.release(name)
