"""`RelegationCredit`: prompt tokens that the relegated are owed for those computed for others."""

from __future__ import annotations

from collections.abc import Iterable

from slackfit.scheduling.streams.live_stream import LiveStream
from slackfit.scheduling.streams.step_filler import PromptPart, StepFiller


class RelegationCredit:
    """Each token of the others earns the relegated `share` of one, so that none waits for ever."""

    def __init__(self, share: float) -> None:
        """Owe nothing. Raises ValueError for a share outside 0 to 1."""
        if not 0.0 < share <= 1.0:
            raise ValueError(f"relegated_share is {share}, allowed above 0 and up to 1")
        self.share = share
        self._tokens = 0.0

    def pay(self, first: LiveStream | None, filler: StepFiller, granule: int) -> None:
        """Take from the first of the relegated what they are owed, once that makes a granule."""
        if first is not None and self._tokens >= min(granule, first.remaining):
            self._tokens -= filler.take_first(first, int(self._tokens))

    def earn(self, taken: Iterable[PromptPart], num_relegated: int) -> None:
        """Count an iteration's tokens of the others; nothing is owed while none is relegated."""
        if not num_relegated:
            self._tokens = 0.0
            return
        self._tokens += self.share * sum(
            length for stream, length in taken if not stream.is_relegated
        )
