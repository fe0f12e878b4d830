"""Open-loop replay: send every query of a trace at its time, whatever the server does.

Latency counts from the *intended* send, so neither a slow server nor a late generator can hide a
delay (coordinated omission). The generator's own lag is measured for each query; a run whose lag
is too large says that it is invalid. Cancellation (Ctrl-C under `asyncio.run`) ends the run early
with a valid partial result. `sender_processes.py` does the same with several processes.
"""

from __future__ import annotations

from collections.abc import Callable

from traces.open_loop.pacing import Clock, MonotonicClock
from traces.open_loop.payloads import Payloads
from traces.open_loop.replay_options import DEFAULTS, ReplayOptions
from traces.open_loop.result import ReplayResult, make_result
from traces.open_loop.sender import Progress, Sender, make_plan
from traces.open_loop.target import ReplayReply, ReplayRequest, Target
from traces.trace import Trace

__all__ = [
    "Progress",
    "ReplayOptions",
    "ReplayReply",
    "ReplayRequest",
    "ReplayResult",
    "Target",
    "replay",
]

START_DELAY_S = 0.02


async def replay(
    trace: Trace,
    target: Target,
    payloads: Payloads,
    options: ReplayOptions = DEFAULTS,
    *,
    clock: Clock | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ReplayResult:
    """Send each query of `trace` to `target` at its time and return how each one ended.

    Query i sends sample `i` of a permutation of `payloads` drawn from the seed and repeated; their
    labels make `measured_accuracy`. `progress` is called twice a second.

    Raises:
        TraceError: for inputs that do not fit together; nothing has been sent then.
    """
    plan = make_plan(trace, payloads, options)
    clock = clock or MonotonicClock()
    await target.prepare(payloads.images)
    sender = Sender(plan, target, clock, progress)
    # A little ahead, so that the first query is not late before the loop has started.
    is_partial = await sender.execute(clock.now_s() + START_DELAY_S)
    return make_result(
        trace,
        sender.answers.hand_over(),
        slo_s=plan.slo_s,
        warmup_s=options.warmup_s,
        ended_s=sender.ended_s if is_partial else None,
        max_lag_s=options.max_lag_s,
        cpu_s=[sender.cpu_s],
        loop_lag_s=sender.loop_lag_s,
    )
