"""`TurnOrder`: whose turn it is on a device that several models share.

The device goes to the model whose head of queue is due first. Alone that would starve a model with
a long SLO beside one that is overloaded, whose head is always about to expire; so a model that has
had more device time than another waiting one, by a lead or more, lets that one go first. Below
saturation this is earliest deadline first, under overload it is equal shares of device time (a
lag-bounded form of fair queueing; credit for idle time is worth the lead at most). The lead is
`LEAD_SLOS` of the tightest SLO, and `lead_s` at least: policies fill the time that there is, so
over less than that one model takes much more than another without there being too little.

Pure: no thread and no clock. A live device and a simulated one keep the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from slackfit.policy import DeviceLoad

LEAD_S = 0.1
LEAD_SLOS = 3.0


class Member:
    """One model's account: the device time that it has used, and its tightest SLO of late."""

    __slots__ = ("slo_s", "used_s", "was_idle")

    def __init__(self) -> None:
        self.used_s = 0.0
        self.slo_s = inf
        self.was_idle = True

    def noted(self, load: DeviceLoad) -> DeviceLoad:
        """Return what the model asks for, as it is; its SLO is remembered."""
        self.slo_s = load.slo_s
        return load

    def charge(self, used_s: float, *, is_idle: bool) -> None:
        """Note that the model had the device for so long; `is_idle`: nothing of it waits."""
        self.used_s += used_s
        self.was_idle = is_idle


class TurnOrder:
    """The members of one device, in order of joining."""

    def __init__(self, *, lead_s: float = LEAD_S) -> None:
        self._least_lead_s = lead_s
        self._members: list[Member] = []

    @property
    def lead_s(self) -> float:
        """How much more device time than another that waits a model may have had."""
        slo_s = min(member.slo_s for member in self._members)
        return max(self._least_lead_s, LEAD_SLOS * slo_s if slo_s < inf else 0.0)

    def join(self) -> Member:
        """Return the account of a further model."""
        self._members.append(Member())
        return self._members[-1]

    def ask(self, member: Member) -> None:
        """Note that a model wants the device; an idle one comes with bounded credit."""
        if member.was_idle:  # not while it has a backlog: what it is behind then is owed to it
            most_s = max(other.used_s for other in self._members)
            member.used_s = max(member.used_s, most_s - self.lead_s)

    def next(self, wants: Sequence[tuple[Member, float | None]]) -> Member:
        """Return whose turn it is; a member comes with when its first query is due, None: none."""
        if len(wants) == 1:
            return wants[0][0]
        due = [(due_s, member) for member, due_s in wants if due_s is not None]
        if not due:
            return wants[0][0]
        lead_s = self.lead_s
        least_s = min(member.used_s for _, member in due)
        ahead = [want for want in due if want[1].used_s <= least_s + lead_s]
        return min(ahead, key=lambda want: want[0])[1]
