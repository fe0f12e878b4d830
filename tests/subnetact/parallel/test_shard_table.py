"""Who holds which tokens: growth from one shard to all, whole blocks, nothing held twice."""

from __future__ import annotations

import random

import pytest

from slackfit.streams.spread_rule import most_held, next_shard
from subnetact.decoding.extents import CacheFullError
from subnetact.parallel.shard_table import ShardSpan, ShardTable


def grown(table: ShardTable, sequence: str, tokens: int) -> list[int]:
    table.commit(sequence, table.place(sequence, tokens))
    return table.held(sequence)


def test_a_stream_stays_at_home_until_spreading_pays_then_fills_the_others_up() -> None:
    table = ShardTable(3, 64, block_tokens=4, extent_tokens=8, spread_from=16)
    assert grown(table, "a", 15) == [15, 0, 0]
    assert grown(table, "a", 1) == [16, 0, 0]
    assert grown(table, "a", 9) == [16, 8, 1]
    assert grown(table, "a", 23) == [16, 16, 16]
    assert grown(table, "a", 24) == [24, 24, 24]
    assert [span.length % 4 for span in table.spans("a")] == [0] * len(table.spans("a"))


def test_the_last_extent_goes_on_where_it_is() -> None:
    table = ShardTable(2, 64, block_tokens=4, extent_tokens=8)
    placed = [table.spans("a")[-1].shard for _ in range(20) if grown(table, "a", 1)]
    assert placed == [0] * 8 + [1] * 8 + [0] * 4


def test_a_full_home_is_left_for_a_shard_with_room() -> None:
    table = ShardTable(2, 8, block_tokens=4, extent_tokens=4, spread_from=1000)
    assert grown(table, "a", 6) == [6, 0]
    assert grown(table, "b", 3) == [0, 3]
    assert grown(table, "a", 5) == [8, 3]
    assert table.missing_tokens("a", 1) == 0
    assert grown(table, "a", 1) == [8, 4]
    with pytest.raises(CacheFullError, match="sequence 'a' finds no room"):
        table.place("a", 1)


def test_placing_changes_nothing_that_counts_and_can_be_done_again() -> None:
    table = ShardTable(2, 64, block_tokens=4, extent_tokens=4)
    grown(table, "a", 6)
    first = table.place("a", 11)
    assert table.held("a") == [4, 2]
    assert table.place("a", 11) == first
    table.check_integrity()
    assert grown(table, "a", 11) == [9, 8]


def test_room_that_was_made_is_not_wanted_again() -> None:
    """An iteration that failed is placed again where it was, also when all else is full."""
    table = ShardTable(2, 64, block_tokens=4, extent_tokens=8)
    grown(table, "a", 6)
    first = table.place("a", 122)
    assert table.free_tokens == 0
    assert table.missing_tokens("a", 122) == 0
    assert table.missing_tokens("a", 123) == 4
    assert table.place("a", 122) == first


def test_what_a_chunk_reads_is_what_came_before_and_its_own_rows() -> None:
    table = ShardTable(2, 32, block_tokens=4, extent_tokens=4)
    grown(table, "a", 6)
    spans = table.place("a", 5)
    assert spans == [ShardSpan(1, 2), ShardSpan(0, 3)]
    home, other = table.reads("a", (), spans)
    assert home.past == ((0, 4),)
    assert home.fresh == ((2, (4, 3)),)  # from the third row on
    assert other.past == ((0, 2),)
    assert other.fresh == ((0, (2, 2)),)


def test_sharing_takes_whole_blocks_of_every_shard() -> None:
    table = ShardTable(2, 64, block_tokens=4, extent_tokens=8)
    grown(table, "a", 30)
    table.share("a", "b", 20)
    assert table.held("b") == [12, 8]
    table.release("a")
    table.check_integrity()
    assert grown(table, "b", 5) == [16, 9]
    with pytest.raises(ValueError, match="allowed multiples of 4 up to its length 25"):
        table.share("b", "c", 6)
    with pytest.raises(ValueError, match="'b' is there already"):
        table.share("b", "b", 4)


def test_a_lost_shard_costs_the_streams_that_it_had_tokens_of() -> None:
    table = ShardTable(2, 64, block_tokens=4, extent_tokens=4, spread_from=8)
    grown(table, "short", 8)
    grown(table, "long", 20)
    table.place("new", 4)  # room that was made, nothing written
    assert table.lose(1) == ["long"]
    assert table.sequences == ("short",)
    assert grown(table, "short", 8) == [16, 0]
    assert table.capacity_tokens == 64
    table.regain(1)
    assert grown(table, "short", 4) == [16, 4]
    table.check_integrity()


def test_any_life_of_streams_leaves_the_table_sound() -> None:
    draw = random.Random(1)
    table = ShardTable(3, 96, block_tokens=4, extent_tokens=8, spread_from=12)
    for step in range(600):
        name = draw.randrange(5)
        table.spread_from = draw.choice((0, 12, 1000))
        if draw.random() < 0.15:
            table.release(name)
        else:
            tokens = draw.randint(1, 20)
            missing, free = table.missing_tokens(name, tokens), table.free_tokens
            try:
                spans = table.place(name, tokens)
            except CacheFullError:
                assert missing > free
                table.release(draw.randrange(5))
                continue
            assert table.free_tokens == free - missing
            if draw.random() < 0.8:
                table.commit(name, spans)
        if draw.random() < 0.03:
            table.lose(1)
        elif draw.random() < 0.06:
            table.regain(1)
        source, whole = draw.randrange(5), table.length(name) // 4 * 4
        if whole and source not in table.sequences and draw.random() < 0.3:
            table.release(source)
            table.share(name, source, whole)
        table.check_integrity()
        assert step < 600
    for name in range(5):
        table.release(name)
    table.regain(1)
    assert table.free_tokens == table.capacity_tokens == 3 * 96


def test_extents_are_whole_blocks() -> None:
    with pytest.raises(ValueError, match="extents of 6 tokens, allowed multiples of a block's 4"):
        ShardTable(2, 64, block_tokens=4, extent_tokens=6)


def test_no_room_anywhere_is_no_shard() -> None:
    assert next_shard([1, 2], [0, 0], 0, 0) is None


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("spread_from", [0, 100, 10_000])
def test_the_simulators_fullest_shard_is_the_tables(shards: int, spread_from: int) -> None:
    table = ShardTable(shards, 2048, block_tokens=1, extent_tokens=1, spread_from=spread_from)
    for context in range(1, 700):
        grown(table, "a", 1)
        assert max(table.held("a")) == most_held(context, shards, spread_from)
