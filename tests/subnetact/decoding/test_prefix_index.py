"""Kept beginnings are what they say, written as well as asked, and in nobody's way."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subnetact.decoding.extents import ExtentTable
from subnetact.decoding.prefix_index import PrefixIndex
from subnetact.decoding.ragged_batch import Chunk
from subnetact.decoding.stream_executor import StreamExecutor
from supernet import Checkpoint

BLOCK = 4


def write(
    table: ExtentTable, index: PrefixIndex, sequence: str, ids: list[int], quality: float
) -> None:
    start = table.length(sequence)
    table.reserve(sequence, len(ids))
    table.advance(sequence, len(ids))
    index.wrote(sequence, start, ids, quality)


def end(table: ExtentTable, index: PrefixIndex, sequence: str) -> None:
    index.end(sequence)
    table.release(sequence)


def test_a_hit_was_written_at_least_as_well_as_asked() -> None:
    table = ExtentTable(16, BLOCK)
    index = PrefixIndex(table)
    text = list(range(11))
    write(table, index, "a", text[:6], 1.0)
    write(table, index, "a", text[6:], 0.5)  # the second block is half its work
    end(table, index, "a")
    for least, tokens in ((0.4, 8), (0.5, 8), (0.7, 4), (1.0, 4)):
        found = index.find([*text, 99], least)
        assert found is not None
        assert found.tokens == tokens
    assert index.find(text, 1.1) is None
    assert index.find([1, *text], 0.0) is None
    whole = index.find(text[:8], 0.0)
    assert whole is not None
    assert whole.tokens == 4  # one token at least is computed: its logits are wanted


def test_the_better_written_of_two_equal_texts_is_found_and_kept() -> None:
    table = ExtentTable(16, BLOCK)
    index = PrefixIndex(table)
    for name, quality in (("a", 0.5), ("b", 1.0), ("c", 0.7)):
        write(table, index, name, list(range(9)), quality)
        end(table, index, name)
    found = index.find(list(range(9)), 0.0)
    assert found is not None
    assert found.quality == 1.0
    assert len(index) == 2  # the third was no better than what was there


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_whatever_is_kept_found_and_given_up_the_table_stays_whole(seed: int) -> None:
    draw = random.Random(seed)
    table = ExtentTable(draw.randint(6, 24), BLOCK)
    index = PrefixIndex(table)
    running: dict[str, tuple[list[int], list[float]]] = {}
    for number in range(40):
        name = f"s{number}"
        if running and draw.random() < 0.4:
            end(table, index, gone := draw.choice(list(running)))
            del running[gone]
        else:
            ids = [draw.randint(0, 1) for _ in range(draw.randint(1, 14))]
            least = draw.choice((0.0, 0.5, 1.0))
            written: list[float] = []
            found = index.find(ids, least)
            need = table.missing_tokens(name, len(ids))
            if need > table.free_tokens:
                index.make_room(need)
            if found is not None:
                found = index.find(ids, least)  # it may have been given up
            if found is not None:
                assert found.quality >= least
                assert found.tokens < len(ids)
                index.begin(name, found)
                written = [found.quality] * found.tokens
            done = len(written)
            if table.missing_tokens(name, len(ids) - done) > table.free_tokens:
                end(table, index, name)
                continue
            quality = draw.choice((0.5, 1.0))
            write(table, index, name, ids[done:], quality)
            running[name] = (ids, written + [quality] * (len(ids) - done))
        table.check_integrity()
    for name in running:
        end(table, index, name)
    index.make_room(table.capacity_tokens)
    table.check_integrity()
    assert len(index) == 0
    assert table.free_tokens == table.capacity_tokens
    assert index._nodes == index._holders == {}


@pytest.fixture
def executor(decoder: Checkpoint) -> StreamExecutor:
    return StreamExecutor(decoder, capacity_tokens=64, block_tokens=BLOCK, keep_prefixes=True)


def test_a_kept_beginning_gives_the_logits_of_a_cold_one(
    executor: StreamExecutor, plain_logits
) -> None:
    narrow, wide = executor.subnet_ids[0], executor.subnet_ids[-1]
    text = tuple(range(20, 38))
    executor.run(wide, [Chunk("a", text, False)])
    executor.release("a")
    found = executor.find_prefix((*text, 3), executor.quality(narrow))
    assert found is not None
    assert found.tokens == 16
    executor.begin("b", found)
    logits = executor.run(narrow, [Chunk("b", (*text[16:], 3))])[0]
    expected = plain_logits([*text, 3], [wide] * 16 + [narrow] * 3)[-1]
    torch.testing.assert_close(logits, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    executor.release("b")
    executor.cache.table.check_integrity()


def test_what_a_narrow_width_wrote_is_no_hit_for_a_wide_one(executor: StreamExecutor) -> None:
    narrow, wide = executor.subnet_ids[0], executor.subnet_ids[-1]
    text = tuple(range(20, 38))
    executor.run(narrow, [Chunk("a", text, False)])
    executor.release("a")
    assert executor.find_prefix(text, executor.quality(wide)) is None
    assert executor.find_prefix(text, executor.quality(narrow)) is not None


def test_a_text_whose_beginning_is_not_known_is_not_kept(executor: StreamExecutor) -> None:
    wide = executor.subnet_ids[-1]
    executor.run(wide, [Chunk("a", tuple(range(20, 32)), False)])
    executor.share("a", "b", 8)
    executor.run(wide, [Chunk("b", tuple(range(50, 60)), False)])
    executor.release("b")
    assert executor.find_prefix(tuple(range(50, 60)), 0.0) is None
    executor.release("a")
    assert executor.find_prefix(tuple(range(20, 32)), 0.0) is not None


def test_kept_beginnings_make_room_for_streams(executor: StreamExecutor) -> None:
    wide = executor.subnet_ids[-1]
    for name in "abc":
        executor.run(wide, [Chunk(name, tuple(range(ord(name), ord(name) + 20)), False)])
        executor.release(name)
    assert executor.cache.table.free_tokens == 4
    executor.run(wide, [Chunk("d", (1,) * 50, False)])
    executor.release("d")
    executor.cache.table.check_integrity()
