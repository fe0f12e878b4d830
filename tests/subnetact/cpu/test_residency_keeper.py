"""A keeper changes what is resident while batches run: one at a time, never a wrong answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable

import pytest

from slackfit.residency import Candidate, FixedResidency, Savings, ValuePerByte
from subnetact.cpu.residency_keeper import ResidencyKeeper

SIZES = {"a": 30, "b": 20, "c": 10}


class Store:
    """Keeps names, as many as have room; counts what it is asked for."""

    def __init__(self, budget_bytes: int = 100) -> None:
        self.budget_bytes = budget_bytes
        self.held: list[str] = []
        self.loads: list[str] = []
        self.refused = 0

    @property
    def resident(self) -> frozenset[str]:
        return frozenset(self.held)

    def load(self, key: Hashable) -> bool:
        if sum(SIZES[k] for k in self.held) + SIZES[str(key)] > self.budget_bytes:
            self.refused += 1
            return False
        self.held.append(str(key))
        self.loads.append(str(key))
        return True

    def evict_others(self, keep: Iterable[Hashable]) -> int:
        kept = [key for key in self.held if key in set(keep)]
        gone, self.held = len(self.held) - len(kept), kept
        return gone


@pytest.fixture
def savings() -> Savings:
    """`c` saves most seconds per byte, `a` least."""
    return Savings(
        Candidate(key, key, size, 0.0, {key: 1e-6 * (100 - size)}) for key, size in SIZES.items()
    )


def test_one_step_loads_one_the_most_valuable_first(savings: Savings) -> None:
    store = Store()
    keeper = ResidencyKeeper(store, FixedResidency(frozenset("abc")), savings)
    assert not keeper.step(), "no batch has run, so nothing is to be done"
    with keeper.batch("a"):
        assert store.loads == []
    for number, loaded in enumerate("cba", start=1):
        more = keeper.step()
        assert store.loads[-1] == loaded
        assert more == (number < 3)


def test_what_is_not_wanted_any_more_goes_before_what_is_wanted_comes(savings: Savings) -> None:
    store = Store(budget_bytes=30)
    store.held = ["b", "c"]
    keeper = ResidencyKeeper(store, FixedResidency(frozenset("a")), savings)
    with keeper.batch("a"):
        pass
    assert not keeper.step()
    assert store.held == ["a"]


def test_what_finds_no_room_is_tried_again_and_given_up(savings: Savings) -> None:
    store = Store(budget_bytes=20)
    keeper = ResidencyKeeper(store, FixedResidency(frozenset("ab")), savings)
    with keeper.batch("a"):
        pass
    steps = 1
    while keeper.step():
        steps += 1
    assert store.held == ["b"]
    assert (steps, store.refused) == (5, 4)


@pytest.mark.alone
def test_the_thread_waits_for_a_gap_but_not_for_ever(savings: Savings) -> None:
    store = Store()
    keeper = ResidencyKeeper(store, FixedResidency(frozenset("abc")), savings, patience_s=0.02)
    keeper.start()
    with keeper.batch("a"):
        pass
    with keeper.batch("a"):  # as under overload: a batch always runs
        _until(lambda: store.resident == frozenset("abc"))
    keeper.close()
    assert not [t for t in threading.enumerate() if t.name == "residency" and t.is_alive()]


def test_a_policy_that_starts_with_some_keeps_them_while_they_are_right(savings: Savings) -> None:
    mix = dict.fromkeys(SIZES, 1 / 3)
    chosen = savings.fill(mix, 30)
    policy = ValuePerByte(savings, 30, resident=chosen)
    assert chosen == frozenset("bc")
    assert [policy.observe(i) for _ in range(10) for i in SIZES] == [None] * 30


def _until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come"
        time.sleep(0.005)
