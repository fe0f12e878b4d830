"""`StreamAdmission`: which streams may wait for a place, and why the others are refused."""

from __future__ import annotations

from math import isnan

from slackfit.streams.stream_query import StreamQuery


class StreamAdmission:
    """At most `max_waiting` streams wait (None: no bound), and none once it drains."""

    def __init__(self, max_waiting: int | None, capacity_tokens: int) -> None:
        """Raises ValueError for a bound below 1."""
        if max_waiting is not None and max_waiting < 1:
            raise ValueError(f"max_waiting is {max_waiting}, allowed 1 or more")
        self.max_waiting = max_waiting
        self._capacity_tokens = capacity_tokens
        self.is_draining = False

    def refusal(self, query: StreamQuery, num_waiting: int, best_quality: float) -> str:
        """Return why a stream is refused, empty if it is not.

        `draining`; `too_long` (prompt and outputs fit into memory at no time); `infeasible` (no
        width is as good as asked); `queue_full`.
        """
        if self.is_draining:
            return "draining"
        if query.prompt_tokens + query.max_tokens > self._capacity_tokens:
            return "too_long"
        if query.min_quality > best_quality:
            return "infeasible"
        is_full = self.max_waiting is not None and num_waiting >= self.max_waiting
        return "queue_full" if is_full else ""


def check_stream(query: StreamQuery) -> None:
    """Raise ValueError for a query that can't be: counts below 1, times that are none."""
    for name in ("prompt_tokens", "max_tokens"):
        if getattr(query, name) < 1:
            raise ValueError(f"{name} is {getattr(query, name)}, allowed 1 or more")
    if not 0 <= query.cached_tokens < query.prompt_tokens:
        raise ValueError(
            f"cached_tokens is {query.cached_tokens}, allowed 0 to one less than the prompt's "
            f"{query.prompt_tokens}"
        )
    if isnan(query.first_deadline_s) or isnan(query.deadline_s):
        raise ValueError(f"a deadline of query {query.query_id} is NaN, allowed a time or inf")
