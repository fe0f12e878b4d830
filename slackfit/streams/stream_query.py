"""The words of streams: a query that stays, one iteration of a decoder, how a stream ended.

A stream has one prompt and many outputs, each with a due time. Like `query.py`: immutable tokens,
times in SI seconds on the driver's clock, never a payload. A vision query is the stream of one
output. A width is chosen for an iteration, for all streams in it, so a stream may set a floor on
quality but can't pin a subnet.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from slackfit.query import Status

FLUENT = 0.9
"""The least fluidity index at which a stream counts as on time (Metron, arXiv 2407.07000)."""


class StreamQuery(NamedTuple):
    """One arrived stream: a prompt of so many tokens, at most `max_tokens` outputs.

    The first output is due at `first_deadline_s`, each later one `period_s` after the one before;
    `deadline_s` is a hard end for all of it: what is not over by then is dropped. `min_quality` is
    a floor (a fraction) on the width that serves any of its tokens. The keys and values of the
    first `cached_tokens` of the prompt are there already (a prefix hit). `query_class` is a
    priority class, of which a higher one comes first; `tenant` who sent it.
    """

    query_id: int
    arrival_s: float
    prompt_tokens: int
    max_tokens: int
    first_deadline_s: float
    period_s: float
    deadline_s: float = inf
    min_quality: float = 0.0
    query_class: int = 0
    tenant: str = ""
    cached_tokens: int = 0


class StreamChunk(NamedTuple):
    """Tokens of one stream in one iteration: `length` of them, from position `start` on.

    `samples`: the last one's logits give the stream's next output. A decode is a chunk of one
    token, the output before.
    """

    query_id: int
    start: int
    length: int
    samples: bool


class Step(NamedTuple):
    """One iteration: `chunks` run in one pass on `subnet_id`.

    The keys and values of the streams in `preempted` are given up before it runs; those streams
    are computed again later. `slack_s` is the time until its most urgent decode is due (inf: it
    has none), `budget` the prompt tokens that the policy allowed.
    """

    step_id: int
    subnet_id: str
    chunks: tuple[StreamChunk, ...]
    start_s: float
    expected_s: float
    slack_s: float = inf
    budget: int = 0
    preempted: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """How many tokens it computes."""
        return sum(chunk.length for chunk in self.chunks)


class StreamOutcome(NamedTuple):
    """How one stream ended; every stream has exactly one.

    `on_time`: all outputs came and the fluidity index is `FLUENT` or more; `late`: all came;
    `dropped`, `rejected` and `failed` as of queries, whatever came before. `output_s` are the times
    of its outputs, `subnet_ids` and `qualities` what computed each. `missed` of `due` periods were
    missed; `start_s` is when its prompt was begun first, None: never.
    """

    query_id: int
    status: Status
    reason: str
    query: StreamQuery
    start_s: float | None
    finish_s: float
    output_s: tuple[float, ...] = ()
    subnet_ids: tuple[str, ...] = ()
    qualities: tuple[float, ...] = ()
    missed: int = 0
    due: int = 0
    quality_on_time: float = 0.0
    preemptions: int = 0
    relegated: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether all of its outputs came."""
        return self.status in ("on_time", "late")

    @property
    def fluidity(self) -> float:
        """The share of its due periods in which an output came in time; 0 unless complete."""
        return 1.0 - self.missed / self.due if self.is_complete and self.due else 0.0

    @property
    def weighted_fluidity(self) -> float:
        """The mean over its due periods of the quality of the output that came, 0 for none."""
        return self.quality_on_time / self.due if self.is_complete and self.due else 0.0
