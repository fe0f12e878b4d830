"""Kept beginnings of prompts: found by whole blocks, by quality, by tenant; pinned, evicted."""

from __future__ import annotations

from serve.engine.streams.prefix_cache import PrefixCache, SharedPrefix

PROMPT = list(range(100, 110))


class Held:
    """A cache of blocks of four, and the sequences that it has begun."""

    def __init__(self, most_entries: int = 3) -> None:
        self.cache = PrefixCache(4, {"small": 0.5, "large": 1.0}, most_entries)
        self.begun: dict[str, int] = {}

    def keep(self, prompt: list[int], quality: float = 1.0, tenant: str = "") -> list[str]:
        return self.cache.keep(prompt, tenant, quality, self.begun.__setitem__)


def test_whole_blocks_are_found_and_a_token_is_left() -> None:
    held = Held()
    assert held.keep(PROMPT) == []
    assert held.begun == {"prefix-0": 8}
    pin = held.cache.pin
    assert pin(PROMPT, "", 0.0) == SharedPrefix("prefix-0", 8)
    assert pin(PROMPT[:8], "", 0.0) == SharedPrefix("prefix-0", 4)  # one token is to compute
    assert pin([*PROMPT[:4], 7, 7, 7, 7, 7], "", 0.0) == SharedPrefix("prefix-0", 4)
    assert pin([7, *PROMPT], "", 0.0) is None
    assert pin(PROMPT[4:], "", 0.0) is None  # the same block elsewhere is another
    counts = held.cache.counts()
    assert (counts.queried_tokens, counts.hit_tokens) == (10 + 8 + 9 + 11 + 6, 8 + 4 + 4)


def test_a_worse_writer_serves_no_better_reader() -> None:
    held = Held()
    held.keep(PROMPT, 0.5)
    assert held.cache.pin(PROMPT, "", 1.0) is None
    assert held.cache.pin(PROMPT, "", 0.5) is not None
    held.keep(PROMPT, 1.0)
    assert held.cache.pin(PROMPT, "", 1.0) == SharedPrefix("prefix-1", 8)
    assert held.keep(PROMPT, 0.5) == []  # as good or better is there
    assert len(held.begun) == 2
    assert held.cache.quality_of("prefix-0") == 0.5


def test_tenants_do_not_find_what_others_have_asked() -> None:
    held = Held()
    held.keep(PROMPT, tenant="a" * 100 + "x")
    assert held.cache.pin(PROMPT, "a" * 100 + "y", 0.0) is None
    assert held.cache.pin(PROMPT, "a" * 100 + "x", 0.0) is not None


def test_what_was_promised_stays_and_the_least_used_goes() -> None:
    held = Held(most_entries=2)
    first, second, third = ([i] * 4 for i in range(3))
    held.keep(first)
    held.keep(second)
    assert held.cache.pin([*first, 9], "", 0.0) == SharedPrefix("prefix-0", 4)
    assert held.keep(third) == ["prefix-1"]
    assert held.cache.pin([*second, 9], "", 0.0) is None
    assert held.cache.evict() == "prefix-2"
    assert held.cache.evict() is None  # the one that is left is promised
    held.cache.unpin("prefix-0")
    assert held.cache.evict() == "prefix-0"
    assert held.cache.counts().entries == 0


def test_what_is_gone_is_offered_to_nobody_and_goes_once_nobody_was_promised_it() -> None:
    held = Held()
    first, second = ([i] * 4 for i in range(2))
    held.keep(first)
    held.keep(second)
    assert held.cache.pin([*second, 9], "", 0.0) == SharedPrefix("prefix-1", 4)
    assert held.cache.forget(["prefix-0", "prefix-1", "another", 7]) == ["prefix-0"]
    assert held.cache.pin([*first, 9], "", 0.0) is None
    assert held.cache.pin([*second, 9], "", 0.0) is None
    assert held.cache.evict() is None  # the promise stands
    held.cache.unpin("prefix-1")
    held.keep(first)
    assert held.cache.evict() == "prefix-1"
    assert held.cache.pin([*first, 9], "", 0.0) == SharedPrefix("prefix-2", 4)


def test_a_promise_is_taken_back_where_nothing_else_is_left() -> None:
    held = Held()
    held.keep([1] * 4)
    assert held.cache.take_back() is None  # nobody was promised it: evict it
    assert held.cache.pin([1] * 5, "", 0.0) == SharedPrefix("prefix-0", 4)
    assert not held.cache.is_lost("prefix-0")
    assert held.cache.take_back() == "prefix-0"
    assert held.cache.is_lost("prefix-0")
    assert held.cache.take_back() is None
    assert held.cache.pin([1] * 5, "", 0.0) is None
    held.cache.unpin("prefix-0")
    assert held.cache.evict() == "prefix-0"
