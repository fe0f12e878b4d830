"""Samples through shared memory: what is taken is what was put, and a full ring takes nothing."""

from __future__ import annotations

import os
from collections import deque

import numpy as np
import pytest

from serve.link.payload_ring import PayloadRing, make_memory


@pytest.fixture
def ends():
    memory = make_memory(4096)
    yield PayloadRing(memory), PayloadRing(memory)
    os.close(memory)


def test_whatever_sizes_come_they_are_taken_as_they_were_put(ends, rng: np.random.Generator):
    door, engine = ends
    waiting: deque = deque()
    num_full = 0
    for _ in range(2000):
        samples = rng.integers(0, 256, (int(rng.integers(1, 6)), 3, 67), dtype=np.uint8)
        place = door.put(samples)
        if place is not None:
            waiting.append((samples, place))
        num_full += place is None
        if place is None or rng.random() < 0.4:
            for _ in range(int(rng.integers(1, len(waiting) + 1))):
                sent, (offset, filled) = waiting.popleft()
                taken = engine.take(offset, sent.shape, sent.dtype.str)
                np.testing.assert_array_equal(taken, sent)
                door.free(filled)
    assert num_full > 50


def test_what_was_taken_is_the_readers_own(ends):
    door, engine = ends
    offset, filled = door.put(np.arange(4, dtype=np.int64))
    taken = engine.take(offset, (4,), "<i8")
    door.free(filled)
    for _ in range(80):
        _, filled = door.put(np.full(4, 9, dtype=np.int64))
        door.free(filled)
    assert taken.tolist() == [0, 1, 2, 3]


def test_memory_has_no_name_and_ends_with_its_last_user(ends):
    door, engine = ends
    door.put(np.zeros(8, dtype=np.uint8))
    door.close()
    engine.close()
    assert not [name for name in os.listdir("/dev/shm") if "supernet-door" in name]
