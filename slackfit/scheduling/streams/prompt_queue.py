"""`PromptQueue`: the streams whose prompts are not computed yet, in the policy's order.

Those of tenants with shares stand in a line each, since how far a tenant is behind its share
changes with every iteration; the lines are put one behind the other when the order is asked for.
Those that were relegated stand behind all others, in order of arrival.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import TypeAlias

from slackfit.scheduling.streams.live_stream import LiveStream
from slackfit.scheduling.streams.stream_standing import StreamStanding
from slackfit.streams.stream_policy import StreamPolicy

_Key: TypeAlias = tuple[int, float, float, int]
_Line: TypeAlias = list[tuple[_Key, LiveStream]]
_KEY = itemgetter(0)


class PromptQueue:
    """Streams by (tenant's standing, class, rank, arrival, id), where a higher class comes first.

    Ranks that time alone changes are taken anew whenever the order is asked for.
    """

    def __init__(self, policy: StreamPolicy, standing: StreamStanding) -> None:
        """Begin empty; `standing` says whose tenant comes first, when the order is asked for."""
        self._standing = standing
        self._policy = policy
        self._lines: dict[str, _Line] = {}  # by account, each sorted unless ranks age
        self._keys: dict[int, _Key] = {}
        self._relegated: dict[int, LiveStream] = {}  # in order of relegation

    def __len__(self) -> int:
        return len(self._keys) + len(self._relegated)

    @property
    def num_relegated(self) -> int:
        """How many stand behind."""
        return len(self._relegated)

    def use(self, policy: StreamPolicy, now_s: float) -> None:
        """Order by another policy from now on."""
        self._policy = policy
        streams = [stream for line in self._lines.values() for _, stream in line]
        self._lines, self._keys = {}, {}
        for stream in streams:
            self.add(stream, now_s)

    def add(self, stream: LiveStream, now_s: float) -> None:
        """Add a stream, or one that was pre-empted."""
        if stream.is_relegated:
            self._relegated[stream.query_id] = stream
            return
        key = self._key(stream, now_s)
        self._keys[stream.query_id] = key
        line = self._lines.setdefault(self._standing.account(stream.query), [])
        if self._policy.ranks_age:
            line.append((key, stream))
        else:
            insort(line, (key, stream), key=_KEY)

    def update(self, stream: LiveStream, now_s: float) -> None:
        """Rank a stream anew, some of whose prompt was computed."""
        if stream.is_relegated or self._policy.ranks_age:
            return
        if self._key(stream, now_s) != self._keys[stream.query_id]:
            self.remove(stream)
            self.add(stream, now_s)

    def remove(self, stream: LiveStream) -> None:
        """Remove a stream, if it is there."""
        if self._relegated.pop(stream.query_id, None) is not None:
            return
        key = self._keys.pop(stream.query_id, None)
        if key is None:
            return
        line = self._lines[self._standing.account(stream.query)]
        if self._policy.ranks_age:
            line[:] = [entry for entry in line if entry[1] is not stream]
        else:
            del line[bisect_left(line, key, key=_KEY)]

    def relegate(self, stream: LiveStream) -> None:
        """Put a stream behind all others, for good."""
        self.remove(stream)
        stream.is_relegated = True
        self._relegated[stream.query_id] = stream

    def in_order(self, now_s: float) -> Iterator[LiveStream]:
        """The streams that were not relegated, the first first; the queue stays as it is."""
        if self._policy.ranks_age:
            for line in self._lines.values():
                line[:] = [(self._key(stream, now_s), stream) for _, stream in line]
                line.sort(key=_KEY)
        level = self._standing.level
        for _, accounts in groupby(sorted(self._lines, key=level), level):
            lines = [self._lines[account] for account in accounts]
            line = lines[0] if len(lines) == 1 else heapq.merge(*lines, key=_KEY)
            yield from (stream for _, stream in line)

    def relegated(self) -> Iterator[LiveStream]:
        """The streams that were relegated, the first first."""
        return iter(self._relegated.values())

    def _key(self, stream: LiveStream, now_s: float) -> _Key:
        query = stream.query
        rank = self._policy.rank(stream.prompt(), now_s)
        return (-query.query_class, rank, query.arrival_s, query.query_id)
