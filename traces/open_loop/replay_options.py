"""`ReplayOptions`: how a trace is sent and judged, by one sender or by several."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """How a replay sends its queries and judges the answers.

    `slo_s` is every query's relative deadline; None takes the trace's own. `seed` draws the order
    in which samples are sent. A query unanswered after `timeout_s` (from its send; None: never) is
    `failed`. Queries that arrive in the first `warmup_s` seconds are sent but left out of the
    result, whose times then count from the end of the warm-up. The run is invalid when the 99th
    percentile of the generator's lag passes `max_lag_s`, or (None) that of lag over the query's own
    SLO passes a tenth. A
    query that was refused, or whose connection broke, is sent again up to `max_retries` times while
    its deadline leaves room, with what is left of it; all retries together stay below a tenth of
    the queries.
    """

    slo_s: float | None = None
    seed: int = 0
    timeout_s: float | None = 30.0
    warmup_s: float = 0.0
    max_lag_s: float | None = None
    max_retries: int = 0


DEFAULTS = ReplayOptions()
