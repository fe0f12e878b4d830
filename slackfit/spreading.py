"""`Spreading`: to which of several replicas a client sends its next request. No I/O, no clock.

Every answer brings its replica's `Outlook`. Until the next one comes from there, a client adds
what it has sent itself since: the local estimates of LSQ (Vargaftik, Keslassy and Orda, "LSQ: Load
Balancing in Large-Scale Heterogeneous Systems with Multiple Dispatchers", IEEE/ACM Transactions on
Networking, 2020), in seconds instead of queries, so that replicas of different speeds compare. The
least estimate is chosen. What differs by less than a batch counts as equal, and of equal ones the
least recently used is chosen: several clients that believed every outlook to the millisecond would
all run to the same replica. Without outlooks that is the fewest open requests, in turn.

A replica that fails is left at once, for a while that doubles with every failure. It comes back on
trial: with one request at a time, until one is answered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

_FIRST_REST_S = 0.1
_LONGEST_REST_S = 5.0
_ONE_FOR = 8
"""Queries that one request of our own stands for: others send as well, and the most accurate subnet
that fits takes longer than the fastest, which outlooks are made with."""
_EQUAL = 16
"""Queries by which estimates may differ and count as equal."""


class Outlook(NamedTuple):
    """What a replica tells: how soon it could answer one more query, and its most queries/s."""

    finish_s: float
    capacity_qps: float


@dataclass(slots=True)
class _KnownReplica:
    """What a client knows of one replica."""

    is_spare: bool
    told: Outlook | None = None
    told_s: float = 0.0
    num_sent: int = 0  # since told
    num_open: int = 0
    last_chosen: int = 0
    rest_s: float = 0.0  # the last rest; 0: none since it answered
    away_until_s: float = -inf

    def is_away(self, now_s: float) -> bool:
        """Whether it rests, or is on trial with a request that is still under way."""
        return self.away_until_s > now_s or (self.rest_s > 0 and self.num_open > 0)

    def estimate_s(self, now_s: float) -> float:
        """Return when one more query would end there, in seconds from now."""
        told = self.told
        assert told is not None, "only what was told can be estimated"
        left_s = told.finish_s - (now_s - self.told_s)
        return max(left_s, 0.0) + _ONE_FOR * self.num_sent / told.capacity_qps


class Spreading:
    """The replicas of one server by name, and what a client has learned of each."""

    def __init__(self, names: Iterable[str] = (), *, spare: Iterable[str] = ()) -> None:
        """Know nothing of the replicas yet; `spare` are as in `use`."""
        self._known: dict[str, _KnownReplica] = {}
        self._num_chosen = 0
        self.use(names, spare=spare)

    @property
    def names(self) -> tuple[str, ...]:
        """The replicas in use, the spare ones included."""
        return tuple(self._known)

    def use(self, names: Iterable[str], *, spare: Iterable[str] = ()) -> None:
        """Spread over these from now on; what is known of those that stay is kept.

        `spare` ones are only for when none of the others answers.
        """
        before = self._known
        wanted = {**dict.fromkeys(spare, True), **dict.fromkeys(names, False)}
        self._known = {}
        for name, is_spare in wanted.items():
            known = self._known[name] = before.get(name) or _KnownReplica(is_spare)
            known.is_spare = is_spare

    def choose(self, now_s: float) -> str:
        """Return where the next request goes, and count it as sent there."""
        unit_s = self._unit_s()
        chosen, best, least = None, "", (True, True, inf, 0)
        for name, known in self._known.items():
            is_away = known.is_away(now_s)
            if is_away:
                size = known.away_until_s
            elif unit_s and known.told is not None:
                size = known.estimate_s(now_s) // unit_s
            else:
                size = 0.0 if unit_s else known.num_open
            rank = (is_away, known.is_spare, size, known.last_chosen)
            if chosen is None or rank < least:
                chosen, best, least = known, name, rank
        assert chosen is not None, "there is a replica"
        self._num_chosen += 1
        chosen.last_chosen = self._num_chosen
        chosen.num_sent += 1
        chosen.num_open += 1
        return best

    def answered(self, name: str, now_s: float, told: Outlook | None = None) -> None:
        """Note an answer, also a refusal, and the outlook that it brought.

        Its capacity is 0 where only the time was told: that is as before, then.
        """
        known = self._ended(name)
        if known is None:
            return
        known.rest_s, known.away_until_s = 0.0, -inf
        if told is not None and not told.capacity_qps and known.told is not None:
            told = told._replace(capacity_qps=known.told.capacity_qps)
        if told is not None and told.capacity_qps > 0:
            known.told, known.told_s, known.num_sent = told, now_s, 0

    def failed(self, name: str, now_s: float) -> None:
        """Leave a replica that could not be reached, drains or is sick; it rests for a while."""
        known = self._ended(name)
        if known is None or known.away_until_s > now_s:
            return  # one of those that were under way when it failed
        known.rest_s = min(max(2 * known.rest_s, _FIRST_REST_S), _LONGEST_REST_S)
        known.away_until_s = now_s + known.rest_s
        known.told = None

    def forgotten(self, name: str) -> None:
        """Note a request that ended without a word: its caller went away."""
        self._ended(name)

    def has_sound(self, now_s: float) -> bool:
        """Whether there is a replica that has not failed last."""
        return any(not known.is_away(now_s) for known in self._known.values())

    def _ended(self, name: str) -> _KnownReplica | None:
        known = self._known.get(name)
        if known is not None:
            known.num_open -= 1
        return known

    def _unit_s(self) -> float:
        """Return what counts as equal, by the fastest replica; 0 while nothing was told."""
        most_qps = max([k.told.capacity_qps for k in self._known.values() if k.told], default=0.0)
        return _EQUAL / most_qps if most_qps else 0.0
