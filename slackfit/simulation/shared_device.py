"""Several models on one device, in virtual time: as a live server shares one.

Each model has a scheduler of its own, with one worker: the device. It decides its batch when it has
the device, as `serve`'s engines do. At a completion first `complete`, then whatever arrives at that
moment, then the device goes to whom `TurnOrder` says; one that has nothing to run passes it on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import merge
from math import inf
from typing import NamedTuple

from slackfit.policy import DeviceLoad, combined
from slackfit.query import Batch, Outcome, Query
from slackfit.scheduling.scheduler import Scheduler
from slackfit.scheduling.turn_order import LEAD_S, Member, TurnOrder


class SharedModel(NamedTuple):
    """One model: its scheduler, fresh, and its queries in order of arrival."""

    scheduler: Scheduler
    queries: Sequence[Query]


class _Place(NamedTuple):
    scheduler: Scheduler
    member: Member
    outcomes: list[Outcome]


class SharedDevice:
    """One simulation; `latency_s` says what a batch really takes (default: as predicted)."""

    def __init__(
        self,
        models: Sequence[SharedModel],
        *,
        lead_s: float = LEAD_S,
        latency_s: Callable[[Batch], float] = lambda batch: batch.expected_latency_s,
    ) -> None:
        self._order = TurnOrder(lead_s=lead_s)
        self._latency_s = latency_s
        self._places = [_Place(model.scheduler, self._order.join(), []) for model in models]
        arrivals = (
            [(query.arrival_s, number, query) for query in model.queries]
            for number, model in enumerate(models)
        )
        self._arrivals = list(merge(*arrivals, key=lambda arrival: arrival[0]))[::-1]
        self._now_s = 0.0
        self._running: tuple[_Place, Batch, float] | None = None  # until when

    def run(self) -> list[list[Outcome]]:
        """Return the outcomes of each model, in the order of their ends."""
        while True:
            arrival_s = self._arrivals[-1][0] if self._arrivals else inf
            finish_s = self._running[2] if self._running else inf
            now_s = min(arrival_s, finish_s, inf if self._running else self._wakeup_s())
            if now_s == inf:
                break
            self._now_s = now_s
            if finish_s == now_s:
                self._complete(now_s)
            while self._arrivals and self._arrivals[-1][0] == now_s:
                self._arrive()
            if self._running is None:
                self._grant(now_s)
        for place in self._places:  # what a policy waits with although nothing will happen any more
            place.outcomes.extend(place.scheduler.cancel_all(self._now_s))
        return [place.outcomes for place in self._places]

    def _wakeup_s(self) -> float:
        times_s = (place.scheduler.next_wakeup_s() for place in self._places)
        earliest_s = min((time_s for time_s in times_s if time_s is not None), default=inf)
        return max(earliest_s, self._now_s)

    def _arrive(self) -> None:
        _, number, query = self._arrivals.pop()
        place = self._places[number]
        was_empty = not len(place.scheduler)
        refused = place.scheduler.submit(query, query.arrival_s)
        if refused is not None:
            place.outcomes.append(refused)
        elif was_empty and (self._running is None or self._running[0] is not place):
            self._order.ask(place.member)

    def _complete(self, now_s: float) -> None:
        assert self._running is not None, "something runs"
        place, batch, _ = self._running
        self._running = None
        place.outcomes.extend(place.scheduler.complete(batch.batch_id, now_s))
        is_idle = place.scheduler.head_deadline_s is None
        place.member.charge(now_s - batch.start_s, is_idle=is_idle)

    def _others(self, place: _Place, now_s: float) -> DeviceLoad:
        others = [other for other in self._places if other is not place]
        return combined(other.member.noted(other.scheduler.load(now_s)) for other in others)

    def _grant(self, now_s: float) -> None:
        wanting = [place for place in self._places if len(place.scheduler)]
        while wanting:
            chosen = self._order.next([(p.member, p.scheduler.head_deadline_s) for p in wanting])
            place = next(place for place in wanting if place.member is chosen)
            dispatch = place.scheduler.poll(now_s, None, self._others(place, now_s))
            place.outcomes.extend(dispatch.dropped)
            if dispatch.batch is not None:
                finish_s = now_s + self._latency_s(dispatch.batch)
                self._running = (place, dispatch.batch, finish_s)
                return
            wanting.remove(place)
