"""`LiveStream`: what is known of one stream from its admission to its end."""

from __future__ import annotations

from slackfit.query import Status
from slackfit.streams.fluidity import FluidityCount
from slackfit.streams.stream_policy import PromptState
from slackfit.streams.stream_query import FLUENT, StreamOutcome, StreamQuery


class LiveStream:
    """A stream that waits or runs: its tokens so far, computed or not, and its periods.

    As in vLLM there are no phases: `cached` tokens of `known` ones are computed and try to catch up
    (a decode is one token behind); after a pre-emption none are.
    """

    __slots__ = (
        "cached",
        "fluidity",
        "is_decoding",
        "is_relegated",
        "is_running",
        "known",
        "output_s",
        "preemptions",
        "qualities",
        "query",
        "start_s",
        "subnet_ids",
    )

    def __init__(self, query: StreamQuery) -> None:
        """Begin to wait."""
        self.query = query
        self.known = query.prompt_tokens
        self.cached = query.cached_tokens
        self.fluidity = FluidityCount(query.first_deadline_s, query.period_s)
        self.output_s: list[float] = []
        self.subnet_ids: list[str] = []
        self.qualities: list[float] = []
        self.start_s: float | None = None
        self.preemptions = 0
        self.is_running = False
        self.is_relegated = False
        self.is_decoding = False  # all that it lacks is its last output

    @property
    def query_id(self) -> int:
        """The id of its query."""
        return self.query.query_id

    @property
    def due_s(self) -> float:
        """When its next output is due."""
        return self.fluidity.due_s

    @property
    def remaining(self) -> int:
        """How many known tokens are not computed."""
        return self.known - self.cached

    def prompt(self) -> PromptState:
        """Return it as policies see it."""
        return PromptState(
            self.query, self.cached, self.known, self.fluidity.due_s, self.is_running
        )

    def output(self, now_s: float, subnet_id: str, quality: float) -> None:
        """Take its next output, computed on a subnet of a quality."""
        self.output_s.append(now_s)
        self.subnet_ids.append(subnet_id)
        self.qualities.append(quality)
        self.fluidity.note(now_s, quality)
        self.known += 1
        self.is_decoding = True

    def preempt(self) -> None:
        """Forget what was computed; its outputs stay."""
        self.cached = 0
        self.is_running = self.is_decoding = False
        self.preemptions += 1

    def complete(self, now_s: float) -> StreamOutcome:
        """Return its outcome once all of its outputs have come."""
        is_fluent = self.fluidity.result.index >= FLUENT
        return self._outcome("on_time" if is_fluent else "late", "", now_s)

    def end(self, status: Status, reason: str, now_s: float) -> StreamOutcome:
        """Return its outcome where it ends before."""
        return self._outcome(status, reason, now_s)

    def _outcome(self, status: Status, reason: str, now_s: float) -> StreamOutcome:
        return StreamOutcome(
            query_id=self.query_id,
            status=status,
            reason=reason,
            query=self.query,
            start_s=self.start_s,
            finish_s=now_s,
            output_s=tuple(self.output_s),
            subnet_ids=tuple(self.subnet_ids),
            qualities=tuple(self.qualities),
            missed=self.fluidity.missed,
            due=self.fluidity.due,
            quality_on_time=self.fluidity.quality,
            preemptions=self.preemptions,
            relegated=self.is_relegated,
        )
