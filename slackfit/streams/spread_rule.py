"""Which shard of keys and values takes a stream's next tokens: pure, for the simulator and devices.

A stream begins on one shard, its home, where it costs what it costs on one device. From the
context at which exchanging partial attention pays (`spread_from`, the break-even that a profile
has) its next tokens go to the shard that holds the least of it: first the others are filled up,
then all grow alike (the growth rule of Medha's KV-cache parallelism, arXiv 2409.17264 section 3.3,
with the measured break-even for its most tokens per worker).
"""

from __future__ import annotations

from collections.abc import Sequence


def next_shard(
    held: Sequence[int], free: Sequence[int], last: int | None, spread_from: int
) -> int | None:
    """Return which shard takes a stream's next extent; None where no shard has room.

    `held` is how many of its tokens each shard has, `free` for how many more each has room, `last`
    the shard that took the extent before.

    >>> next_shard([512, 0], [64, 64], 0, 1024), next_shard([1024, 0], [64, 64], 0, 1024)
    (0, 1)
    """
    with_room = [shard for shard, tokens in enumerate(free) if tokens > 0]
    if not with_room:
        return None
    if sum(held) >= spread_from:
        return min(with_room, key=lambda shard: (held[shard], shard))
    return last if last in with_room else with_room[0]


def most_held(context: int, shards: int, spread_from: int) -> int:
    """Return how many of `context` tokens the fullest shard has, extents taken as one token.

    >>> [most_held(n, 2, 1000) for n in (400, 1500, 6000)]
    [400, 1000, 3000]
    """
    if context <= spread_from:
        return context
    return max(min(spread_from, context), -(-context // shards))
