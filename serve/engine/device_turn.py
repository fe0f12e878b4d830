"""`DeviceTurn`: several models take turns on one device, as `TurnOrder` says.

Each model keeps an engine, a queue and a policy of its own, and decides its batch when it has the
device: late binding, as with one model. It is told what the others ask of the device, so that it
plans for all of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from slackfit.policy import ALONE, DeviceLoad, combined
from slackfit.scheduling.turn_order import LEAD_S, Member, TurnOrder


class DeviceLostError(RuntimeError):
    """The device hangs in another engine's hands: nobody will get it any more."""


class DeviceSlot:
    """One engine's place; enter it to use the device. One thread at a time.

    `comes_back`, set inside, says that the engine enters again at once: it takes part in the choice
    of the next one then. A thread that ends calls `leave`.
    """

    def __init__(
        self,
        turn: DeviceTurn,
        member: Member,
        urgency_s: Callable[[], float | None],
        load: Callable[[], DeviceLoad],
    ) -> None:
        self._turn = turn
        self.member = member
        self.urgency_s = urgency_s
        self.load = load
        self.comes_back = False

    def __enter__(self) -> None:
        self.comes_back = False
        self._turn.take(self)

    def __exit__(self, *_: object) -> None:
        self._turn.give(self)

    def keep(self) -> None:
        """Go on with the device, inside: what is under way ends there; the time is charged."""
        self._turn.charge(self)

    def leave(self) -> None:
        """Come back no more."""
        self.comes_back = False
        self._turn.give(self)

    def others(self) -> DeviceLoad:
        """Return what the other engines ask of the device, now."""
        return self._turn.load_beside(self)

    def lose(self) -> None:
        """Say that the device hangs, to every other engine."""
        self._turn.lose()


class DeviceTurn:
    """One device; engines call `slot` once, then enter their slot for each batch."""

    def __init__(
        self, *, lead_s: float = LEAD_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._order = TurnOrder(lead_s=lead_s)
        self._clock = clock
        self._changed = threading.Condition()
        self._slots: list[DeviceSlot] = []
        self._waiting: list[DeviceSlot] = []
        self._holder: DeviceSlot | None = None
        self._since_s = 0.0
        self._is_lost = False

    def slot(
        self, urgency_s: Callable[[], float | None], load: Callable[[], DeviceLoad] = lambda: ALONE
    ) -> DeviceSlot:
        """Return a place for an engine.

        `urgency_s` says when its first query is due, None for none; `load` what its queries ask of
        the device. Both are called by other engines' threads.
        """
        with self._changed:
            slot = DeviceSlot(self, self._order.join(), urgency_s, load)
            self._slots.append(slot)
        return slot

    def load_beside(self, slot: DeviceSlot) -> DeviceLoad:
        """Return what all engines but one ask of the device."""
        others = [other for other in tuple(self._slots) if other is not slot]
        return combined(other.member.noted(other.load()) for other in others)

    def take(self, slot: DeviceSlot) -> None:
        """Wait until it is this engine's turn. Raises DeviceLostError."""
        with self._changed:
            self._order.ask(slot.member)
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
            self._charge(slot)
            self._holder = None
            self._grant([slot] if slot.comes_back else [])

    def charge(self, slot: DeviceSlot) -> None:
        """Charge the holder for its time up to now; it keeps the device."""
        with self._changed:
            if self._holder is slot:
                self._charge(slot)

    def lose(self) -> None:
        """Give the device up for good: who waits, and who will, gets DeviceLostError."""
        with self._changed:
            self._is_lost = True
            self._changed.notify_all()

    def _charge(self, slot: DeviceSlot) -> None:
        now_s = self._clock()
        slot.member.charge(now_s - self._since_s, is_idle=slot.urgency_s() is None)
        self._since_s = now_s

    def _grant(self, returning: Sequence[DeviceSlot] = ()) -> None:
        """Choose the next holder here and now: a choice by the waiting could fall between two."""
        if self._holder is None and (self._waiting or returning):
            self._holder = self._next([*self._waiting, *returning])
            self._since_s = self._clock()
            self._changed.notify_all()

    def _next(self, slots: Sequence[DeviceSlot]) -> DeviceSlot:
        if len(slots) == 1:
            return slots[0]
        chosen = self._order.next([(slot.member, slot.urgency_s()) for slot in slots])
        return next(slot for slot in slots if slot.member is chosen)
