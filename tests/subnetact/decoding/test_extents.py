"""The table of extents keeps its promises whatever is asked of it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnetact.decoding.extents import CacheFullError, ExtentTable, Run


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_sequence_of_requests_keeps_blocks_apart(seed: int) -> None:
    draw = random.Random(seed)
    table = ExtentTable(draw.randint(1, 20), draw.choice((1, 3, 4)))
    lengths: dict[int, int] = {}
    written: dict[int, list[int]] = {}  # by sequence, the slot of each position
    for number in range(60):
        kind = draw.choice(("append", "append", "append", "release", "share"))
        if kind == "release" and lengths:
            gone = draw.choice(list(lengths))
            table.release(gone)
            del lengths[gone], written[gone]
        elif kind == "share" and lengths:
            source = draw.choice(list(lengths))
            blocks = lengths[source] // table.block_tokens
            if blocks:
                tokens = draw.randint(1, blocks) * table.block_tokens
                table.share(source, number, tokens)
                lengths[number], written[number] = tokens, written[source][:tokens]
        elif kind == "append":
            sequence = draw.choice([*lengths, number])
            tokens = draw.randint(1, 12)
            before = table.free_tokens
            missing = table.missing_tokens(sequence, tokens)
            try:
                table.reserve(sequence, tokens)
            except CacheFullError:
                assert missing > before == table.free_tokens
                assert table.length(sequence) == lengths.get(sequence, 0)
                continue
            assert table.free_tokens == before - missing
            table.advance(sequence, tokens)
            start = lengths.get(sequence, 0)
            lengths[sequence] = start + tokens
            runs = table.slots(sequence, start, start + tokens)
            new = [slot for run in runs for slot in range(run.begin, run.begin + run.length)]
            others = {slot for other in written if other != sequence for slot in written[other]}
            assert not others & set(new), "written where another sequence reads"
            written.setdefault(sequence, []).extend(new)
        table.check_integrity()
        for sequence, slots in written.items():
            runs = table.slots(sequence, 0, lengths[sequence])
            assert [s for r in runs for s in range(r.begin, r.begin + r.length)] == slots
            assert len(runs) <= table.num_extents(sequence)
    for sequence in lengths:
        table.release(sequence)
    table.check_integrity()
    assert table.free_tokens == table.capacity_tokens


def test_a_sequence_alone_stays_in_one_slab() -> None:
    table = ExtentTable(8, 4)
    for _ in range(8):
        table.reserve("a", 4)
        table.advance("a", 4)
    assert table.slots("a", 0, 32) == [Run(0, 32)]
    assert table.num_extents("a") == 1


def test_what_another_one_holds_is_gone_around() -> None:
    table = ExtentTable(3, 4)
    for sequence in ("a", "b", "a"):
        table.reserve(sequence, 4)
        table.advance(sequence, 4)
    assert table.slots("a", 2, 7) == [Run(2, 2), Run(8, 3)]


@pytest.mark.parametrize("prompt", [8, 9, 30])
def test_streams_that_grow_in_turn_leave_each_other_room(prompt: int) -> None:
    """Eight at once, a token each in turn, in a cache that they half fill."""
    table = ExtentTable(2 * 8 * (prompt + 40) // 4, 4)
    for sequence in range(8):
        table.reserve(sequence, prompt)
        table.advance(sequence, prompt)
    for _ in range(40):
        for sequence in range(8):
            table.reserve(sequence, 1)
            table.advance(sequence, 1)
    table.check_integrity()
    assert max(table.num_extents(sequence) for sequence in range(8)) <= 2


def test_misuse_is_refused() -> None:
    table = ExtentTable(4, 4)
    table.reserve("a", 5)
    table.advance("a", 5)
    with pytest.raises(ValueError, match=r"no room for 4 more tokens: reserve"):
        table.advance("a", 4)
    with pytest.raises(ValueError, match="3 tokens of 'a' can't be shared; allowed multiples of 4"):
        table.share("a", "b", 3)
    with pytest.raises(ValueError, match="up to its length 5"):
        table.share("a", "b", 8)
    with pytest.raises(ValueError, match="'a' is there already"):
        table.share("a", "a", 4)
    with pytest.raises(ValueError, match="a cache of 0 blocks"):
        ExtentTable(0, 4)
    table.release("unknown")


@pytest.mark.parametrize("fault", ["reference", "free", "length"])
def test_a_broken_table_is_noticed(fault: str) -> None:
    table = ExtentTable(4, 4)
    table.reserve("a", 5)
    if fault == "reference":
        table._references[0] = 2
    elif fault == "free":
        table._num_free += 1
    else:
        table._sequences["a"].length = 9
    with pytest.raises(AssertionError):
        table.check_integrity()
