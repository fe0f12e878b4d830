"""Open-loop replay: send every query of a trace at its time, whatever the server does.

Latency counts from the *intended* send, so neither a slow server nor a late generator can hide a
delay (coordinated omission). The generator's own lag is measured for each query; a run whose lag
is too large says that it is invalid. Cancellation (Ctrl-C under `asyncio.run`) ends the run early
with a valid partial result. `sender_processes.py` does the same with several processes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from traces.open_loop.pacing import Clock, MonotonicClock
from traces.open_loop.result import ReplayResult, make_result
from traces.open_loop.sender import Progress, Sender, SendPlan, make_plan
from traces.open_loop.target import ReplayReply, ReplayRequest, Target
from traces.trace import Trace

__all__ = [
    "Progress",
    "ReplayReply",
    "ReplayRequest",
    "ReplayResult",
    "Target",
    "replay",
]

INVALID_LAG_PER_SLO = 0.1
START_DELAY_S = 0.02


async def replay(
    trace: Trace,
    target: Target,
    *,
    slo_s: float | None = None,
    payloads: np.ndarray,
    labels: np.ndarray | None = None,
    seed: int = 0,
    timeout_s: float | None = 30.0,
    warmup_s: float = 0.0,
    max_lag_s: float | None = None,
    max_retries: int = 0,
    clock: Clock | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ReplayResult:
    """Send each query of `trace` to `target` at its time and return how each one ended.

    `slo_s` is every query's relative deadline; None takes the trace's own. Query i sends sample
    `i` of a permutation of `payloads` (N, C, H, W) drawn from `seed` and repeated; `labels` (N,)
    make `measured_accuracy`. A query unanswered after `timeout_s` (from its send) is `failed`.
    Queries that arrive in the first `warmup_s` seconds are sent but left out of the result, whose
    times then count from the end of the warm-up. The run is invalid when the 99th percentile of
    the generator's lag passes `max_lag_s` (None: a tenth of the smallest SLO). A query that was
    refused, or whose connection broke, is sent again up to `max_retries` times while its deadline
    leaves room, with what is left of it; all retries together stay below a tenth of the queries.

    Raises:
        TraceError: for inputs that do not fit together; nothing has been sent then.
    """
    plan = make_plan(trace, slo_s, payloads, labels, seed, timeout_s, warmup_s, max_retries)
    clock = clock or MonotonicClock()
    await target.prepare(payloads)
    sender = Sender(plan, target, clock, progress)
    # A little ahead, so that the first query is not late before the loop has started.
    is_partial = await sender.execute(clock.now_s() + START_DELAY_S)
    return make_result(
        trace,
        sender.answers,
        slo_s=plan.slo_s,
        warmup_s=warmup_s,
        ended_s=sender.ended_s if is_partial else None,
        max_lag_s=allowed_lag_s(plan, max_lag_s),
        cpu_s=[sender.cpu_s],
    )


def allowed_lag_s(plan: SendPlan, max_lag_s: float | None) -> float:
    """Return the 99th percentile of lag above which a run is invalid (s)."""
    return INVALID_LAG_PER_SLO * float(plan.slo_s.min()) if max_lag_s is None else max_lag_s
