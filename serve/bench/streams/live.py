"""Streams served in real time: the engine on a device that sleeps, or on a decoder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from serve.bench.rows import Row, Tell, row
from serve.bench.streams.setting import (
    OURS,
    StreamRunner,
    StreamSetting,
    mean_fluidity,
    mean_quality,
)
from serve.engine.streams.open_stream import OpenStream, StreamRequest
from serve.engine.streams.stream_device import (
    IterationExecutor,
    SharedPrefix,
    StreamDevice,
    TokenRun,
)
from serve.engine.streams.stream_engine import StreamEngine
from slackfit.policies.streams import create_stream_policy
from slackfit.scheduling.streams.stream_scheduler import StreamScheduler
from slackfit.streams.iteration_cost import IterationCosts
from slackfit.streams.stream_metrics import first_output_s, gaps_s
from slackfit.streams.stream_query import StreamOutcome, StreamQuery
from subnetact.timed_decoder import TimedDecoder
from traces.trace import Trace

LOADS = {0.5: 0.10, 0.7: 0.10, 0.85: 0.15}
"""Share of capacity, and how far the simulator may be off there."""
POINTS = (0.7, 1.0, 1.3)
"""Of our capacity, as simulated with the profile of the decoder."""
SPEED_UP = 2.0
_PREFIX = "prefix"


async def serve_live(
    queries: Sequence[StreamQuery],
    costs: IterationCosts,
    policy: str,
    executor: IterationExecutor,
    vocab_size: int,
) -> list[StreamOutcome]:
    """Send streams at their times, with drawn prompts; return outcomes whose times begin at 0."""
    scheduler = StreamScheduler(costs, create_stream_policy(policy, costs))
    engine = StreamEngine(scheduler, StreamDevice(executor))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, vocab_size, q.prompt_tokens).tolist() for q in queries]
    for query, prompt in zip(queries, prompts, strict=True):
        if query.cached_tokens:
            ids = tuple(prompt[: query.cached_tokens])
            executor.run(costs.subnet_ids[-1], [TokenRun(_PREFIX, ids, samples=False)])
    await engine.start()
    begun_s = engine.clock() + 0.05
    readers: list[asyncio.Task[OpenStream]] = []
    for query, prompt in zip(queries, prompts, strict=True):
        await asyncio.sleep(max(0.0, begun_s + query.arrival_s - engine.clock()))
        shared = SharedPrefix(_PREFIX, query.cached_tokens) if query.cached_tokens else None
        stream = engine.open(
            StreamRequest(
                prompt=prompt,
                max_tokens=query.max_tokens,
                arrival_s=begun_s + query.arrival_s,
                first_deadline_s=begun_s + query.first_deadline_s,
                period_s=query.period_s,
                shared=shared,
            )
        )
        readers.append(asyncio.ensure_future(_read(stream)))
    streams = await asyncio.gather(*readers)
    await engine.stop()
    executor.release(_PREFIX)
    return [_from_zero(stream, begun_s) for stream in streams]


async def _read(stream: OpenStream) -> OpenStream:
    async for _ in stream:
        pass
    return stream


def _from_zero(stream: OpenStream, begun_s: float) -> StreamOutcome:
    outcome = stream.outcome
    assert outcome is not None, "an exhausted stream has ended"
    query = outcome.query
    return outcome._replace(
        query=query._replace(
            arrival_s=query.arrival_s - begun_s,
            first_deadline_s=query.first_deadline_s - begun_s,
        ),
        finish_s=outcome.finish_s - begun_s,
        output_s=tuple(at_s - begun_s for at_s in outcome.output_s),
    )


def fidelity_rows(setting: StreamSetting, capacity_qps: float, tell: Tell) -> list[Row]:
    """Return how far the simulator is off the engine on the timed device, by load.

    Device and due times run `SPEED_UP` times as fast, so that it takes two minutes.
    """
    fast = replace(
        setting,
        costs=setting.costs.scaled(1.0 / SPEED_UP),
        num_streams=80,
        slo=replace(
            setting.slo,
            ttft_s=setting.slo.ttft_s / SPEED_UP,
            tpot_s=setting.slo.tpot_s / SPEED_UP,
            ttft_per_token_s=setting.slo.ttft_per_token_s / SPEED_UP,
        ),
    )
    rows: list[Row] = []
    for load, bar in LOADS.items():
        queries = fast.queries(0, load * capacity_qps * SPEED_UP)
        simulated = fast.simulated(queries, OURS)
        began_s, cpu_s = time.perf_counter(), time.process_time()
        decoder = TimedDecoder(fast.costs)
        live = asyncio.run(serve_live(queries, fast.costs, OURS, decoder, decoder.vocab_size))
        share = (time.process_time() - cpu_s) / (time.perf_counter() - began_s)
        tell(f"timed device at {load:.0%}: processor {share:.0%}")
        for name, of in (("gap", gaps_s), ("ttft", first_output_s)):
            for quantile in (50, 95):
                said, found = (float(np.percentile(of(o), quantile)) for o in (simulated, live))
                rows.append(
                    row(
                        f"streams/simulator_error/load{load:g}/{name}_p{quantile}",
                        abs(said - found) / found,
                        "fraction",
                        setting.detail(
                            simulated_ms=round(said * 1e3, 3),
                            live_ms=round(found * 1e3, 3),
                            processor=f"{share:.0%} of one core",
                            device=f"timed, {SPEED_UP:g} times as fast",
                            bar=bar,
                        ),
                    )
                )
    return rows


def live_runner(
    costs: IterationCosts, make: Callable[[], IterationExecutor], vocab_size: int
) -> StreamRunner:
    """Return a `StreamRunner` that serves in real time, on a fresh executor each."""

    def run(queries: Sequence[StreamQuery], policy: str) -> list[StreamOutcome]:
        return asyncio.run(serve_live(queries, costs, policy, make(), vocab_size))

    return run


def live_point_rows(
    setting: StreamSetting,
    run: StreamRunner,
    capacity_qps: float,
    tell: Tell,
    name: str = "live",
    how: str = "in real time",
) -> list[Row]:
    """Return the on-time shares of ours and the fixed largest, as they are served, by load."""
    rows: list[Row] = []
    for load in POINTS:
        trace: Trace = setting.trace(0, load * capacity_qps)
        queries = setting.queries(0, trace.rate_qps)[:60]
        for policy in (OURS, "fixed:largest"):
            outcomes = run(queries, policy)
            told: dict[str, Any] = {"simulated": _share(setting.simulated(queries, policy))}
            rows.append(
                row(
                    f"streams/{name}/load{load:g}/{policy}/on_time",
                    _share(outcomes),
                    "fraction",
                    setting.detail(
                        **told,
                        streams=len(queries),
                        rate_qps=round(load * capacity_qps, 4),
                        fluidity=round(mean_fluidity(outcomes), 4),
                        mean_quality=round(mean_quality(outcomes), 4),
                        how=how,
                    ),
                )
            )
            tell(f"{name} at {load:.0%}, {policy}: {_share(outcomes):.3f} on time")
    return rows


def _share(outcomes: Sequence[StreamOutcome]) -> float:
    return sum(outcome.status == "on_time" for outcome in outcomes) / max(len(outcomes), 1)
