"""`KVTable`: which stream holds how many extents of the memory for keys and values, in integers.

The tensors are the device's; this table decides. An extent holds a fixed number of tokens, a stream
holds as many as its tokens need, and no two streams share one.
"""

from __future__ import annotations


class KVTable:
    """Extents by stream, within a capacity that is never exceeded."""

    __slots__ = ("_extents", "_free", "capacity_tokens", "extent_tokens", "num_extents")

    def __init__(self, capacity_tokens: int, extent_tokens: int = 256) -> None:
        """Hold nothing. Raises ValueError unless an extent fits into the capacity."""
        if not 1 <= extent_tokens <= capacity_tokens:
            raise ValueError(
                f"an extent of {extent_tokens} tokens in a capacity of {capacity_tokens}: "
                "give extents of 1 or more, and room for one"
            )
        self.extent_tokens = extent_tokens
        self.num_extents = capacity_tokens // extent_tokens
        self.capacity_tokens = self.num_extents * extent_tokens
        self._free = self.num_extents
        self._extents: dict[int, int] = {}

    def __len__(self) -> int:
        """Return how many streams hold something."""
        return len(self._extents)

    @property
    def free_tokens(self) -> int:
        """For how many tokens there are extents that nobody holds."""
        return self._free * self.extent_tokens

    @property
    def held_tokens(self) -> int:
        """For how many tokens extents are held."""
        return self.capacity_tokens - self.free_tokens

    def extents_of(self, tokens: int) -> int:
        """Return how many extents so many tokens need."""
        return -(-tokens // self.extent_tokens)

    def fits(self, tokens: int, spare_extents: int = 0) -> bool:
        """Whether a new stream of so many tokens could be held, with some extents left over."""
        return self.extents_of(tokens) + spare_extents <= self._free

    def grow(self, query_id: int, tokens: int) -> bool:
        """Let a stream hold `tokens` in all; False, and nothing is changed, if they do not fit."""
        held = self._extents.get(query_id, 0)
        more = max(self.extents_of(tokens) - held, 0)
        if more > self._free:
            return False
        self._extents[query_id] = held + more
        self._free -= more
        return True

    def release(self, query_id: int) -> None:
        """Let a stream hold nothing; one that does not is no error."""
        self._free += self._extents.pop(query_id, 0)

    def check_integrity(self) -> None:
        """Raise AssertionError unless free and held extents make up the capacity."""
        held = sum(self._extents.values())
        assert self._free >= 0, f"{-self._free} extents are held twice"
        assert held + self._free == self.num_extents, (
            f"{held} extents held and {self._free} free of {self.num_extents}"
        )
