"""Rules by which a router in front of several replicas spreads queries; pure and seeded.

`round-robin` in turn; `power-of-two` the less loaded of two drawn ones (Mitzenmacher, "The Power of
Two Choices in Randomized Load Balancing", IEEE TPDS, 2001); `predicted-finish` where an answer
could come first; `sticky:CONNECTIONS` each query on a connection that was drawn to a replica once,
as by a kernel that spreads connections. Those see the replicas as they are at that moment.
`client` or `client:PROCESSES` is what clients of ours do: each process spreads by what its own
answers told it (`slackfit.spreading`), which reach it `REPORT_DELAY_S` after their batch has ended.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import NamedTuple, Protocol

import numpy as np

from slackfit.query import Outcome, Query
from slackfit.spreading import Outlook, Spreading

REPORT_DELAY_S = 1e-3
_WITHOUT_COUNT = ("one-queue", "round-robin", "power-of-two", "predicted-finish", "client")
_WITH_COUNT = ("sticky", "client")
NAMES = (*_WITHOUT_COUNT[:-1], "sticky:CONNECTIONS", "client[:PROCESSES]")
_PATTERN = re.compile(r"([a-z-]+)(?::([1-9][0-9]*))?")


class Routing(NamedTuple):
    """How queries get to replicas: a rule, and how many connections or processes it has."""

    rule: str
    num_senders: int = 1

    def __str__(self) -> str:
        return f"{self.rule}:{self.num_senders}" if self.rule in _WITH_COUNT else self.rule


ONE_QUEUE = Routing("one-queue")
"""All queries wait in one queue, over all devices."""

ROUND_ROBIN = Routing("round-robin")
"""Replicas in turn."""


def parse_routing(text: str) -> Routing:
    """Return the routing that a text names. Raises ValueError for anything else.

    >>> parse_routing("sticky:32")
    Routing(rule='sticky', num_senders=32)
    """
    found = _PATTERN.fullmatch(text)
    rule, count = found.groups() if found else ("", None)
    if rule not in (_WITHOUT_COUNT if count is None else _WITH_COUNT):
        raise ValueError(f"routing {text!r} is unknown, allowed {', '.join(NAMES)}")
    return Routing(rule, int(count or 1))


class RoutedReplica(Protocol):
    """A replica as a router sees it at one moment; `advance` brings it there."""

    num_open: int

    def advance(self, now_s: float) -> None: ...
    def outlook(self, now_s: float) -> Outlook: ...


class Router(Protocol):
    """Says where each query goes, in order of arrival, and hears what the replicas answer."""

    def choose(self, query: Query) -> int: ...

    def answered(self, replica: int, outcomes: Sequence[Outcome], told: Outlook) -> None:
        """Hear of queries that ended together, and what their replica tells with them."""
        ...


def create_router(
    routing: Routing, replicas: Sequence[RoutedReplica], rng: np.random.Generator
) -> Router:
    """Return the router of a rule other than one queue."""
    match routing.rule:
        case "round-robin":
            return _RoundRobin(replicas)
        case "power-of-two":
            return _PowerOfTwo(replicas, rng)
        case "predicted-finish":
            return _PredictedFinish(replicas)
        case "sticky":
            return _Sticky(replicas, routing.num_senders, rng)
        case "client":
            return _Clients(replicas, routing.num_senders, rng)
        case _:
            raise ValueError(f"routing {routing} has no router")


class _Deaf:
    """A router that needs no answers."""

    def answered(self, replica: int, outcomes: Sequence[Outcome], told: Outlook) -> None:
        """Nothing is learned."""


class _RoundRobin(_Deaf):
    def __init__(self, replicas: Sequence[RoutedReplica]) -> None:
        self._count = len(replicas)
        self._last = -1

    def choose(self, query: Query) -> int:
        self._last = (self._last + 1) % self._count
        return self._last


class _PowerOfTwo(_Deaf):
    def __init__(self, replicas: Sequence[RoutedReplica], rng: np.random.Generator) -> None:
        self._replicas = replicas
        self._rng = rng

    def choose(self, query: Query) -> int:
        count = len(self._replicas)
        if count == 1:
            return 0
        first = int(self._rng.integers(count))
        second = (first + 1 + int(self._rng.integers(count - 1))) % count
        for index in (first, second):
            self._replicas[index].advance(query.arrival_s)
        return min(first, second, key=lambda index: self._replicas[index].num_open)


class _PredictedFinish(_Deaf):
    def __init__(self, replicas: Sequence[RoutedReplica]) -> None:
        self._replicas = replicas
        self._last_used = list(range(len(replicas)))
        self._num_chosen = len(replicas)

    def choose(self, query: Query) -> int:
        now_s = query.arrival_s
        best, least = 0, (float("inf"), 0)
        for index, replica in enumerate(self._replicas):
            replica.advance(now_s)
            rank = (replica.outlook(now_s).finish_s, self._last_used[index])
            if rank < least:
                best, least = index, rank
        self._last_used[best] = self._num_chosen
        self._num_chosen += 1
        return best


class _Sticky(_Deaf):
    def __init__(
        self, replicas: Sequence[RoutedReplica], count: int, rng: np.random.Generator
    ) -> None:
        self._rng = rng
        self._replica_of = rng.integers(len(replicas), size=count).tolist()

    def choose(self, query: Query) -> int:
        return self._replica_of[int(self._rng.integers(len(self._replica_of)))]


class _Told(NamedTuple):
    """What an answer tells a process, when it gets there."""

    at_s: float
    number: int
    process: int
    replica: int
    told: Outlook


class _Clients:
    """Processes that send a query each, drawn; none knows what the others send or were told."""

    def __init__(
        self, replicas: Sequence[RoutedReplica], count: int, rng: np.random.Generator
    ) -> None:
        self._replicas = replicas
        self._rng = rng
        self._names = [str(index) for index in range(len(replicas))]
        self._processes = [self._fresh() for _ in range(count)]
        self._process_of: dict[int, int] = {}  # by open query
        self._on_the_way: list[_Told] = []  # a heap
        self._num_told = 0

    def choose(self, query: Query) -> int:
        now_s = query.arrival_s
        for replica in self._replicas:
            replica.advance(now_s)
        self._hear(now_s)
        process = int(self._rng.integers(len(self._processes)))
        self._process_of[query.query_id] = process
        return int(self._processes[process].choose(now_s))

    def answered(self, replica: int, outcomes: Sequence[Outcome], told: Outlook) -> None:
        for outcome in outcomes:
            process = self._process_of.pop(outcome.query_id)
            at_s = outcome.finish_s + REPORT_DELAY_S
            heappush(self._on_the_way, _Told(at_s, self._num_told, process, replica, told))
            self._num_told += 1

    def _hear(self, now_s: float) -> None:
        waiting = self._on_the_way
        while waiting and waiting[0].at_s <= now_s:
            news = heappop(waiting)
            spreading = self._processes[news.process]
            spreading.answered(self._names[news.replica], news.at_s, news.told)

    def _fresh(self) -> Spreading:
        """Return what a process begins with: the replicas, each process in an order of its own."""
        order = self._rng.permutation(len(self._names))
        return Spreading([self._names[int(index)] for index in order])
