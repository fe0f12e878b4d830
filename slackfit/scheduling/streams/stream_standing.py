"""`StreamStanding`: whose prompts, memory and places in the queue go first.

While the device has time to spare nobody's tenant matters. Once it is busy, the tenant that had the
smallest part of its share in the last ten seconds goes first, whatever the classes: a tenant is not
a priority, and no priority buys another tenant's share. `Standing` of queries asks only who had
more than that; a stream has the device for seconds, by which all would swing about their shares.
Within an eighth of a share, and without shares, the higher class goes first. Nobody is stopped for
it: who is behind gets on where the others leave room, and what runs keeps its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import NamedTuple

from slackfit.scheduling.tenant_shares import TenantShares
from slackfit.streams.iteration_cost import IterationCost
from slackfit.streams.stream_query import StreamChunk, StreamQuery

WINDOW_S = 10.0

StreamRank = tuple[int, int]
"""How far the tenant is behind its share, and the class; a higher rank goes first."""

_BUSY = 0.85  # of the window, whose oldest part is cut off somewhere
_LEVELS = 8  # of a share
_MOST_LEVELS = 8 * _LEVELS


class ChargedChunk(NamedTuple):
    """A chunk of an iteration, and the query whose it is."""

    query: StreamQuery
    chunk: StreamChunk


class StreamStanding:
    """The ranks of streams at the latest `refresh`."""

    def __init__(self, shares: Mapping[str, float] | None = None) -> None:
        """`shares`: fractions of the device's time by tenant; all others together have the rest.

        Raises ValueError for a share that is not above 0 and at most 1.
        """
        self._time = TenantShares(shares, window_s=WINDOW_S)
        self._levels: dict[str, int] = {}

    @property
    def shares(self) -> dict[str, float]:
        """The shares as given."""
        return self._time.shares

    def refresh(self, now_s: float) -> None:
        """Look how much of their shares tenants had."""
        if not self.shares:
            return
        self._levels = {}
        if sum(self._time.used(now_s).values()) >= _BUSY:
            served = self._time.served(now_s)
            self._levels = {key: _level(part) for key, part in served.items()}

    def account(self, query: StreamQuery) -> str:
        """Return whose share a stream's time is on, see `TenantShares.key_of`."""
        return self._time.key_of(query.tenant)

    def level(self, account: str) -> int:
        """Return how much of its share an account had, in eighths; 0 for all with time to spare."""
        return self._levels.get(account, 0)

    def rank(self, query: StreamQuery) -> StreamRank:
        """Return the rank of a stream."""
        return -self.level(self.account(query)), query.query_class

    def charge(
        self, charged: Iterable[ChargedChunk], cost: IterationCost, step_s: float, now_s: float
    ) -> None:
        """Note that these have an iteration of `step_s` to themselves.

        Each its own attention, and of the rest a part by its tokens.
        """
        if not self.shares:
            return
        parts = [
            (query.tenant, cost.attention_s(chunk.start, chunk.length), chunk.length)
            for query, chunk in charged
        ]
        rest_s = max(step_s - sum(own_s for _, own_s, _ in parts), 0.0)
        tokens = sum(length for _, _, length in parts)
        for tenant, own_s, length in parts:
            self._time.charge(tenant, own_s + rest_s * length / tokens, now_s)


def _level(served: float) -> int:
    return _MOST_LEVELS if served == inf else min(int(served * _LEVELS), _MOST_LEVELS)
