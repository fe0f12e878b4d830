"""`StepFiller`: the prompt chunks of an iteration, within the room that the policy left.

Order within an iteration does not matter to when it ends, so a long prompt that is first leaves
those behind it their share and takes what they do not need. Long ones come one after the other: by
relative slack alone they would take turns, and all be late (Medha's code also goes on with what is
begun).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from slackfit.scheduling.streams.live_stream import LiveStream
from slackfit.streams.iteration_fill import IterationFill
from slackfit.streams.stream_policy import StreamDecision

_MOST_MISFITS = 2  # prompts whose context leaves no room for a granule, until the rest is let be

Admit = Callable[[LiveStream], bool]
"""Gives a stream its place and memory, if it has none and there is room."""


class PromptPart(NamedTuple):
    """How many tokens of a stream's prompt an iteration computes."""

    stream: LiveStream
    length: int


class StepFiller:
    """Fills one iteration; `taken` are the chunks so far."""

    def __init__(
        self, fill: IterationFill, decision: StreamDecision, granule: int, admit: Admit
    ) -> None:
        """Begin with the decodes that `fill` has."""
        self._fill = fill
        self._decision = decision
        self._granule = granule
        self._admit = admit
        self._left = decision.budget
        self.taken: list[PromptPart] = []

    def take_first(self, stream: LiveStream, most: int) -> int:
        """Take at most `most` tokens of one stream before all others; return how many."""
        return self._take(stream, min(most, self._left), self._decision.target_s)

    def take_all(self, streams: Iterable[LiveStream]) -> None:
        """Take from `streams`, in order, until there is no more room."""
        decision = self._decision
        if decision.long_tokens is None:
            self._take_in_order(streams, 0, decision.target_s)
            return
        among = list(streams)
        long = [stream for stream in among if stream.known > decision.long_tokens]
        short = [stream for stream in among if stream.known <= decision.long_tokens]
        long.sort(key=_is_not_begun)
        reserved, target_s = 0, decision.target_s
        if long and short and among[0] is long[0]:
            reserved = int(decision.long_share * decision.budget)
            base_s = self._fill.seconds
            target_s = base_s + (1.0 - decision.long_share) * max(target_s - base_s, 0.0)
        self._take_in_order(short, reserved, target_s)
        self._take_in_order(long[:1], 0, decision.target_s)

    def force(self, streams: Sequence[LiveStream]) -> None:
        """Take a granule of the first that can be admitted, whatever it takes."""
        for stream in streams:
            if self._admit(stream):
                self._note(stream, min(stream.remaining, self._granule))
                return

    def _take_in_order(self, streams: Iterable[LiveStream], reserved: int, target_s: float) -> None:
        misfits, is_blocked = 0, False
        for stream in streams:
            if self._left <= reserved or misfits >= _MOST_MISFITS:
                return
            if is_blocked and not stream.is_running:
                continue
            if self._take(stream, self._left - reserved, target_s) == 0:
                if stream.is_running:
                    misfits += 1
                else:
                    is_blocked = True  # who comes behind does not overtake, but what runs goes on

    def _take(self, stream: LiveStream, limit: int, target_s: float) -> int:
        length = self._fill.largest_chunk(
            stream.cached, stream.remaining, limit, target_s, self._granule
        )
        if length == 0 or not self._admit(stream):
            return 0
        self._note(stream, length)
        return length

    def _note(self, stream: LiveStream, length: int) -> None:
        self._fill.add(stream.cached, length, length == stream.remaining)
        self._left -= length
        self.taken.append(PromptPart(stream, length))


def _is_not_begun(stream: LiveStream) -> bool:
    return stream.cached == stream.query.cached_tokens
