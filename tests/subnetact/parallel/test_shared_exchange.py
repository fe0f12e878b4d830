"""Workers that share memory see each other's numbers, and never wait for one that is gone."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from subnetact.parallel import shared_exchange
from subnetact.parallel.shared_exchange import (
    SharedExchange,
    can_share_memory,
    memory_bytes,
    share_memory,
)

pytestmark = pytest.mark.skipif(not can_share_memory(), reason="no memory to share here")
ROOM = 64


def made(size: int, *, is_watching: bool, process_ids: Sequence[int] = ()) -> list[SharedExchange]:
    """The ends of `size` workers in one process, whose ends are those of `process_ids`."""
    memory = mmap.mmap(-1, memory_bytes(size, ROOM))
    watched = process_ids or [os.getpid()] * size
    return [
        SharedExchange(
            memory,
            rank,
            [os.pidfd_open(process_id) for process_id in watched],
            room=ROOM,
            is_watching=is_watching,
        )
        for rank in range(size)
    ]


def all_of(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """What calls return that run at once."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(30.0) for future in [pool.submit(call) for call in calls]]


@pytest.mark.parametrize(("size", "is_watching", "turns"), [(2, True, 20), (3, False, 200)])
def test_each_gets_the_parts_of_all_in_every_turn(size: int, is_watching: bool, turns: int) -> None:
    """Of any shape, also larger than a region, and however late one of them is."""
    draw = random.Random(size)
    shapes = [(draw.randint(1, 5), draw.choice((1, 3, 16, 40))) for _ in range(turns)]
    parts = [[torch.randn(shape) for shape in shapes] for _ in range(size)]
    assert any(part.numel() > ROOM for part in parts[0])

    def take_part(rank: int, end: SharedExchange) -> list[torch.Tensor]:
        late = random.Random(rank)
        found = []
        for part in parts[rank]:
            time.sleep(late.choice((0.0, 0.0, 2e-4)))
            found.append(end.gather(part).clone())
        return found

    ends = made(size, is_watching=is_watching)
    found = all_of(
        [lambda rank=rank, end=end: take_part(rank, end) for rank, end in enumerate(ends)]
    )
    for turn in range(turns):
        expected = torch.stack([own[turn] for own in parts])
        assert all(each[turn].equal(expected) for each in found)
    for end in ends:
        end.leave()


def test_what_was_gathered_lasts_until_the_next_gather() -> None:
    """Also when the others are a turn ahead: they write where nobody reads any more."""
    first, second = made(2, is_watching=False)

    def ahead() -> None:
        second.gather(torch.full((4,), 1.0))
        second.gather(torch.full((4,), 2.0))

    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(ahead)
        found = first.gather(torch.zeros(4))
        time.sleep(0.02)
        assert found.tolist() == [[0.0] * 4, [1.0] * 4]
        assert first.gather(torch.zeros(4))[1].tolist() == [2.0] * 4
        going.result(10.0)
    first.leave()
    second.leave()


@pytest.mark.parametrize("is_watching", [True, False])
def test_who_waits_for_a_worker_that_leaves_is_told(is_watching: bool) -> None:
    first, second = made(2, is_watching=is_watching)
    threading.Timer(0.02, second.leave).start()
    with pytest.raises(RuntimeError, match="another worker has left the group"):
        first.gather(torch.zeros(4))
    first.leave()


def test_who_waits_for_a_process_that_is_killed_is_told_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        (first, second) = made(2, is_watching=True, process_ids=[os.getpid(), process.pid])
        killed_s: list[float] = []

        def kill() -> None:
            killed_s.append(time.monotonic())
            process.kill()

        threading.Timer(0.1, kill).start()
        with pytest.raises(RuntimeError, match="another worker of the group has ended"):
            first.gather(torch.zeros(4))
        assert time.monotonic() - killed_s[0] < 0.5
    first.leave()
    second.leave()


class Told:
    """What workers tell each other, who are threads here."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=10.0)
        self._said: list[list[int]] = [[] for _ in range(size)]

    def by(self, rank: int) -> Callable[[list[int]], list[list[int]]]:
        def tell(numbers: list[int]) -> list[list[int]]:
            self._said[rank] = numbers
            self._barrier.wait()
            told = list(self._said)
            self._barrier.wait()
            return told

        return tell


def met(size: int) -> list[SharedExchange | None]:
    told = Told(size)
    return all_of(
        [lambda rank=rank: share_memory(rank, size, told.by(rank)) for rank in range(size)]
    )


def num_open() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_workers_meet_in_memory_without_a_name_and_leave_nothing_behind() -> None:
    before = num_open()
    ends = [end for end in met(2) if end is not None]
    assert len(ends) == 2
    parts = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
    gathered = all_of(
        [lambda end=end, part=part: end.gather(part) for end, part in zip(ends, parts, strict=True)]
    )
    assert [each.tolist() for each in gathered] == [[[1.0, 2.0], [3.0, 4.0]]] * 2
    while ends:
        ends.pop().leave()
    del gathered
    assert num_open() == before


@pytest.mark.parametrize("at", ["the second telling", "taking part"])
def test_who_does_not_come_to_an_end_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """As where another worker dies while they meet: they meet again, however often."""

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError(at)

    def tell(numbers: list[int]) -> list[list[int]]:
        return [numbers, [os.getpid(), 0]] if len(numbers) == 2 else fail()

    if at == "taking part":
        monkeypatch.setattr(shared_exchange, "SharedExchange", fail)
    before = num_open()
    with pytest.raises(RuntimeError, match=at):
        share_memory(0, 2, tell)
    assert num_open() == before


def test_where_one_cannot_nobody_does(monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = shared_exchange._map

    def refused(rank: int, *about: Any) -> mmap.mmap:
        if rank == 1:
            raise PermissionError("not yours")
        return mapped(rank, *about)

    before = num_open()
    monkeypatch.setattr(shared_exchange, "_map", refused)
    assert met(3) == [None] * 3
    monkeypatch.setattr(shared_exchange, "_map", mapped)
    monkeypatch.setattr(shared_exchange, "_make_memory", lambda length: None)
    assert met(2) == [None] * 2
    assert num_open() == before


def test_memory_is_not_shared_where_a_processor_may_reorder_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_exchange.platform, "machine", lambda: "aarch64")
    assert not can_share_memory()
