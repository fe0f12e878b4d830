"""What a door has read waits its turn: in the order of arrival, unless the queue stands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serve.models.intake import LEAST_SLICE_S, SLICE_S, STANDING_S, Intake

COST_S = 0.0011  # of a request: a slice has time for five


class Clock:
    """Stands still unless somebody works."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Visitor:
    """A connection with one request; whoever is refused costs a tenth."""

    def __init__(self, door: Door, name: object, given_s: float) -> None:
        self._door, self._name, self._given_s = door, name, given_s
        self._came_s = door.clock()

    def take_kept(self) -> None:
        door = self._door
        is_refused = door.intake.is_overdue(door.clock() - self._came_s, self._given_s)
        (door.refused if is_refused else door.served).append(self._name)
        door.clock.now_s += COST_S / 10 if is_refused else COST_S


class Door:
    """An intake, and what came of those who came."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.intake = Intake(self.clock)
        self.served: list[object] = []
        self.refused: list[object] = []

    def come(self, name: object, given_s: float = 0.05) -> None:
        """Have somebody come, as a connection does."""
        visitor = Visitor(self, name, given_s)
        if self.intake.has_time(self.clock()):
            visitor.take_kept()
        else:
            self.intake.keep(visitor, self.clock())


def run(body: Callable[[Door], object], turns: int = 0) -> Door:
    """Call `body` in a loop, let it have so many turns, and return who was served by then."""

    async def main() -> Door:
        door = Door()
        coming = body(door)
        if asyncio.iscoroutine(coming):
            await coming
        for _ in range(turns):
            await asyncio.sleep(0)
        seen = Door()  # the loop has a few turns more before it ends
        seen.served, seen.refused = list(door.served), list(door.refused)
        return seen

    return asyncio.run(main())


def test_a_turn_works_for_a_slice_and_what_else_came_waits_in_its_order():
    def come(door: Door) -> None:
        for number in range(12):
            door.come(number)

        assert door.served == [0, 1, 2, 3, 4]

    for turns, number in ((1, 10), (2, 12)):
        assert run(come, turns).served == list(range(number))


def test_whoever_comes_to_an_empty_queue_is_served_at_once():
    async def come(door: Door) -> None:
        for number in range(3):
            door.come(number)
            assert door.served[-1] == number
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    assert run(come).served == [0, 1, 2]


def test_who_comes_while_others_wait_does_not_overtake_them():
    async def come(door: Door) -> None:
        for number in range(10):
            door.come(number)
        await asyncio.sleep(0)  # five more are served: the queue is empty, the slice is over
        door.come(10)
        assert door.served == list(range(10))

    assert run(come, turns=2).served == list(range(11))


def test_a_burst_is_served_to_its_end_though_it_waits_for_most_of_its_time():
    def come(door: Door) -> None:
        for number in range(45):
            door.come(number)

    door = run(come, turns=20)
    assert (door.served, door.refused) == (list(range(45)), [])


async def overload(door: Door, turns: int, per_turn: int, given_s: float) -> None:
    """Have `per_turn` come in every turn."""
    for turn in range(turns):
        for number in range(per_turn):
            door.come((turn, number), given_s)
        await asyncio.sleep(0)


def test_a_queue_that_stands_is_served_from_its_newest_end_and_others_are_refused():
    """From its oldest end it had stood just below the time given, and nobody was in time."""
    waited_s: list[float] = []

    async def come(door: Door) -> None:
        await overload(door, 200, 7, 0.05)
        waited_s.extend(door.clock() - came_s for came_s, _ in door.intake._kept)

    door = run(come)
    assert door.refused, "who can't be served is told"
    first = door.refused[0]
    assert isinstance(first, tuple)
    assert first[0] > STANDING_S / SLICE_S / 2, "not before the queue has stood"
    late = [name for name in door.served if isinstance(name, tuple) and name[0] >= 150]
    assert len(late) >= 2 * 50, "turns are shorter then, and refusing takes little of them"
    assert door.served[-len(late) :] == late, "none of those who came before"
    assert 0.02 < max(waited_s) < 0.05, "nobody is left until their time is over"


def test_one_in_a_hurry_makes_no_turn_of_others_shorter():
    """Slices were a part of the shortest time that anybody gave: 25 us for one of a millisecond."""

    async def come(door: Door) -> None:
        for turn in range(200):
            for number in range(7):
                door.come((turn, number), 0.0005 if number == 3 else 0.05)
            await asyncio.sleep(0)
        assert door.intake._slice_s() >= LEAST_SLICE_S

    door = run(come)
    late = [name for name in door.served if isinstance(name, tuple) and name[0] >= 150]
    assert len(late) >= 90


def test_the_order_is_that_of_arrival_again_once_the_queue_was_empty():
    async def come(door: Door) -> None:
        await overload(door, 100, 7, 0.05)
        assert door.intake.is_overdue(0.03, 0.05)
        for _ in range(30):
            await asyncio.sleep(0)
        assert not door.intake.is_overdue(0.03, 0.05)
        door.served.clear()
        for number in range(12):
            door.come(number)

    assert run(come, turns=3).served == list(range(12))


def test_a_queue_in_which_nobody_waits_for_half_of_their_time_may_stand():
    def come(door: Door) -> object:
        return overload(door, 100, 7, given_s=10.0)

    door = run(come, turns=100)
    assert not door.refused
    assert door.served == sorted(door.served)  # pyright: ignore[reportArgumentType]


def test_one_that_fails_keeps_no_other_waiting():
    class Broken:
        def take_kept(self) -> None:
            raise ValueError("broken")

    async def come(door: Door) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        for number in range(6):
            door.come(number)
        door.intake.keep(Broken(), door.clock())
        door.come(6)

    assert run(come, turns=4).served == list(range(7))
