"""`DeviceTurn`: several models take turns on one device, the most urgent query first.

Each model keeps an engine, a queue and a policy of its own, and decides its batch when it has the
device: late binding, as with one model. The device goes to the engine whose head of queue is due
first. Alone that would starve a model with a long SLO beside one that is overloaded, whose head is
always about to expire; so an engine that has had more device time than another waiting one, by
`lead_s` or more, lets that one go first. Below saturation this is earliest deadline first, under
overload it is equal shares of device time (a lag-bounded form of fair queueing; credit for idle
time is worth `lead_s` at most).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

LEAD_S = 0.1


class DeviceLostError(RuntimeError):
    """The device hangs in another engine's hands: nobody will get it any more."""


class DeviceSlot:
    """One engine's place; enter it to use the device. One thread at a time.

    `comes_back`, set inside, says that the engine enters again at once: it takes part in the choice
    of the next one then. A thread that ends calls `leave`.
    """

    def __init__(self, turn: DeviceTurn, urgency_s: Callable[[], float | None]) -> None:
        self._turn = turn
        self.urgency_s = urgency_s
        self.used_s = 0.0
        self.comes_back = False
        self.was_idle = True

    def __enter__(self) -> None:
        self.comes_back = False
        self._turn.take(self)

    def __exit__(self, *_: object) -> None:
        self._turn.give(self)

    def leave(self) -> None:
        """Come back no more."""
        self.comes_back = False
        self._turn.give(self)

    def lose(self) -> None:
        """Say that the device hangs, to every other engine."""
        self._turn.lose()


class DeviceTurn:
    """One device; engines call `slot` once, then enter their slot for each batch."""

    def __init__(
        self, *, lead_s: float = LEAD_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lead_s = lead_s
        self._clock = clock
        self._changed = threading.Condition()
        self._slots: list[DeviceSlot] = []
        self._waiting: list[DeviceSlot] = []
        self._holder: DeviceSlot | None = None
        self._since_s = 0.0
        self._is_lost = False

    def slot(self, urgency_s: Callable[[], float | None]) -> DeviceSlot:
        """Return a place; `urgency_s` says when the engine's first query is due, None for none.

        It is called while others wait, from any thread.
        """
        slot = DeviceSlot(self, urgency_s)
        with self._changed:
            self._slots.append(slot)
        return slot

    def take(self, slot: DeviceSlot) -> None:
        """Wait until it is this engine's turn. Raises DeviceLostError."""
        with self._changed:
            if slot.was_idle:  # not while it has a backlog: what it is behind then is owed to it
                most_s = max(other.used_s for other in self._slots)
                slot.used_s = max(slot.used_s, most_s - self._lead_s)
            self._waiting.append(slot)
            self._grant()
            try:
                self._changed.wait_for(lambda: self._holder is slot or self._is_lost)
            finally:
                self._waiting.remove(slot)
            self._since_s = self._clock()
            if self._is_lost:
                raise DeviceLostError("another model's batch never came back")

    def give(self, slot: DeviceSlot) -> None:
        """Hand the device on."""
        with self._changed:
            if self._holder is not slot:
                return
            slot.used_s += self._clock() - self._since_s
            slot.was_idle = slot.urgency_s() is None
            self._holder = None
            self._grant([slot] if slot.comes_back else [])

    def lose(self) -> None:
        """Give the device up for good: who waits, and who will, gets DeviceLostError."""
        with self._changed:
            self._is_lost = True
            self._changed.notify_all()

    def _grant(self, returning: Sequence[DeviceSlot] = ()) -> None:
        """Choose the next holder here and now: a choice by the waiting could fall between two."""
        if self._holder is None and (self._waiting or returning):
            self._holder = self._next([*self._waiting, *returning])
            self._since_s = self._clock()
            self._changed.notify_all()

    def _next(self, slots: Sequence[DeviceSlot]) -> DeviceSlot:
        if len(slots) == 1:
            return slots[0]
        wants = [(due_s, slot) for slot in slots if (due_s := slot.urgency_s()) is not None]
        if not wants:
            return slots[0]
        least_s = min(slot.used_s for _, slot in wants)
        due = [want for want in wants if want[1].used_s <= least_s + self._lead_s]
        return min(due, key=lambda want: want[0])[1]
