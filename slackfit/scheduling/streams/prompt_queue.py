"""`PromptQueue`: the streams whose prompts are not computed yet, in the policy's order.

Those that were relegated stand behind all others, in order of arrival.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import itemgetter
from typing import TypeAlias

from slackfit.scheduling.streams.live_stream import LiveStream
from slackfit.scheduling.streams.stream_standing import StreamStanding
from slackfit.streams.stream_policy import StreamPolicy

_Key: TypeAlias = tuple[int, int, float, float, int]
_KEY = itemgetter(0)


class PromptQueue:
    """Streams by (standing, rank, arrival, id), where a higher standing comes first.

    Ranks that time alone changes are taken anew whenever the order is asked for.
    """

    def __init__(self, policy: StreamPolicy, standing: StreamStanding) -> None:
        """Begin empty; `standing` ranks tenants and classes, see `use` for its changes."""
        self._standing = standing
        self._policy = policy
        self._entries: list[tuple[_Key, LiveStream]] = []  # sorted, unless ranks age
        self._keys: dict[int, _Key] = {}
        self._relegated: dict[int, LiveStream] = {}  # in order of relegation

    def __len__(self) -> int:
        return len(self._keys) + len(self._relegated)

    @property
    def num_relegated(self) -> int:
        """How many stand behind."""
        return len(self._relegated)

    def use(self, policy: StreamPolicy, now_s: float) -> None:
        """Order by this policy, and by the standing as it is now."""
        self._policy = policy
        streams = [stream for _, stream in self._entries]
        self._entries, self._keys = [], {}
        for stream in streams:
            self.add(stream, now_s)

    def add(self, stream: LiveStream, now_s: float) -> None:
        """Add a stream, or one that was pre-empted."""
        if stream.is_relegated:
            self._relegated[stream.query_id] = stream
            return
        key = self._key(stream, now_s)
        self._keys[stream.query_id] = key
        if self._policy.ranks_age:
            self._entries.append((key, stream))
        else:
            insort(self._entries, (key, stream), key=_KEY)

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
        if self._policy.ranks_age:
            self._entries = [entry for entry in self._entries if entry[1] is not stream]
        else:
            del self._entries[bisect_left(self._entries, key, key=_KEY)]

    def relegate(self, stream: LiveStream) -> None:
        """Put a stream behind all others, for good."""
        self.remove(stream)
        stream.is_relegated = True
        self._relegated[stream.query_id] = stream

    def in_order(self, now_s: float) -> Iterator[LiveStream]:
        """The streams that were not relegated, the first first."""
        if self._policy.ranks_age:
            self._entries = [(self._key(stream, now_s), stream) for _, stream in self._entries]
            self._entries.sort(key=_KEY)
        return (stream for _, stream in self._entries)

    def relegated(self) -> Iterator[LiveStream]:
        """The streams that were relegated, the first first."""
        return iter(self._relegated.values())

    def _key(self, stream: LiveStream, now_s: float) -> _Key:
        query = stream.query
        rank = self._policy.rank(stream.prompt(), now_s)
        behind, query_class = self._standing.rank(query)
        return (-behind, -query_class, rank, query.arrival_s, query.query_id)
