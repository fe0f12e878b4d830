"""`StreamPlaces`: the streams that run, each with a place and memory for its tokens.

A prompt gets both at once: memory for the keys and values of all of it, and an extent to spare
unless it is alone. A decode that finds none takes it from a stream of the lowest standing, of those
from the one whose next output is due last.
"""

from __future__ import annotations

from collections.abc import Collection

from slackfit.scheduling.streams.kv_table import KVTable
from slackfit.scheduling.streams.live_stream import LiveStream
from slackfit.scheduling.streams.stream_standing import StreamStanding


class StreamPlaces:
    """Streams by id, at most `most` of them, and what memory they hold (`kv`)."""

    __slots__ = ("_running", "_standing", "kv", "most")

    def __init__(self, kv: KVTable, most: int, standing: StreamStanding) -> None:
        """Begin empty; of the lowest `standing` is who gives way."""
        self._standing = standing
        self.kv = kv
        self.most = most
        self._running: dict[int, LiveStream] = {}

    def __len__(self) -> int:
        """Return how many streams run."""
        return len(self._running)

    @property
    def streams(self) -> Collection[LiveStream]:
        """The streams that run, in order of admission."""
        return self._running.values()

    def admit(self, stream: LiveStream, most: int, now_s: float) -> bool:
        """Give a stream its place and memory for all that is known of it, if there is room.

        No more than `most` streams run then.
        """
        if len(self._running) >= most:
            return False
        if not self.kv.fits(stream.known, spare_extents=1 if self._running else 0):
            return False
        self.kv.grow(stream.query_id, stream.known)
        stream.is_running = True
        if stream.start_s is None:
            stream.start_s = now_s
        self._running[stream.query_id] = stream
        return True

    def make_room(self) -> tuple[list[LiveStream], list[LiveStream]]:
        """Return the decodes, each with memory for its next token, and who gave theirs up for it.

        Those are not running any more, and know nothing computed.
        """
        decoding = [stream for stream in self._running.values() if stream.is_decoding]
        gave_way: list[LiveStream] = []
        extent = self.kv.extent_tokens
        for stream in decoding:
            if stream.cached % extent == 0:
                while stream.is_running and not self.kv.grow(stream.query_id, stream.cached + 1):
                    victim = max(self._running.values(), key=self._gives_way)
                    self.release(victim)
                    gave_way.append(victim)
        if gave_way:
            decoding = [stream for stream in decoding if stream.is_running]
        return decoding, gave_way

    def release(self, stream: LiveStream) -> None:
        """Take place and memory from a stream; one that has none is no error."""
        self._running.pop(stream.query_id, None)
        self.kv.release(stream.query_id)
        stream.is_running = False

    def _gives_way(self, stream: LiveStream) -> tuple[bool, int, int, float, int]:
        """Who is pre-empted first: the relegated, the lowest standing, whose output is due last."""
        behind, query_class = self._standing.rank(stream.query)
        due_s = stream.fluidity.due_s
        return stream.is_relegated, -behind, -query_class, due_s, stream.query_id
