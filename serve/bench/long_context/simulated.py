"""Long prompts beside short ones on grids of workers that are not here: simulated, and said so.

One prompt of the context arrives in traffic of short ones. The long one alone says what shards and
stages do to its first output and to the time between outputs; the mixed run what policies make of
it. Everything rests on the roofline of a stated hardware profile and on the efficiencies that it
assumes; nothing of it was measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from serve.bench.rows import Row, Tell, row
from slackfit.policies.streams import create_stream_policy
from slackfit.scheduling.streams.stream_scheduler import StreamScheduler
from slackfit.simulation.simulate_streams import simulate_streams
from slackfit.streams.hardware import DecoderShape, HardwareProfile, hardware_profiles
from slackfit.streams.iteration_cost import IterationCosts
from slackfit.streams.stream_query import Step, StreamOutcome, StreamQuery
from subnetact.parallel.worker_grid import WorkerGrid

SHAPE = DecoderShape(
    name="8 B decoder (32 blocks of 4096, 32 heads on 8 groups of 128, 2 bytes a number)",
    layers=32,
    width=4096,
    hidden=14_336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab=128_256,
    number_bytes=2,
    widths={"e0.5": (0.5, 0.6), "e0.75": (0.75, 0.85), "e1": (1.0, 1.0)},
)
CONTEXTS = {"128k": 131_072, "1m": 1_048_576, "10m": 10_485_760}
POLICIES = {
    "sarathi_512": "sarathi@budget=512",
    "fcfs": "fcfs@budget=4096@granule=64",
    "lars": "lars@budget=4096@granule=64@long_tokens=16384",
    "slackwidth_lars": "slackwidth@order=lars@budget=4096@granule=64@long_tokens=16384",
}


GRIDS = {
    "128k": (WorkerGrid(1, 1), WorkerGrid(8, 1), WorkerGrid(1, 8), WorkerGrid(2, 4)),
    "1m": (WorkerGrid(8, 1), WorkerGrid(1, 8), WorkerGrid(2, 4), WorkerGrid(4, 8)),
    "10m": (WorkerGrid(32, 1), WorkerGrid(4, 8), WorkerGrid(8, 8), WorkerGrid(16, 8)),
}
_MIXED = {"128k": WorkerGrid(2, 4), "1m": WorkerGrid(4, 8), "10m": WorkerGrid(16, 8)}
_SHORT_PROMPT, _SHORT_OUTPUTS, _LONG_OUTPUTS = 1024, 64, 64
_TTFT_S, _TPOT_S, _LOAD = 0.5, 0.05, 0.25
_MOST_SHORT = 1500
_DEADLINE = 1.5  # of a long prompt's time alone


def simulated_rows(folder: Path, tell: Tell) -> list[Row]:
    """Return the rows of every hardware profile in a folder. Raises ValueError for none."""
    profiles = hardware_profiles(folder)
    if not profiles:
        raise ValueError(f"no hardware profile (*.toml) in {folder}")
    rows: list[Row] = []
    for hardware in profiles:
        for context in CONTEXTS:
            tell(f"simulated: {hardware.name}, {context}")
            rows += alone_rows(hardware, context)
            rows += mixed_rows(hardware, context)
    return rows


def alone_rows(hardware: HardwareProfile, context: str) -> Iterator[Row]:
    """The long prompt alone, on each grid: its first output, and the time between outputs."""
    tokens = CONTEXTS[context]
    for grid in GRIDS[context]:
        room = hardware.capacity_tokens(SHAPE, shards=grid.shards, stages=grid.stages)
        figure = _figure(hardware, context, grid)
        if room < tokens + _LONG_OUTPUTS:
            detail = _detail(hardware, grid, room_tokens=room)
            yield row(f"{figure}/fits", 0, "bool", detail)
            continue
        costs = hardware.costs(SHAPE, shards=grid.shards, stages=grid.stages)
        (outcome,), _ = _run(costs, [_long(tokens, 0.0, 1e9)], "fcfs@budget=4096", room)
        stamps_s = outcome.output_s
        detail = _detail(
            hardware, grid, room_tokens=room, break_even_tokens=_even(costs), chunk_tokens=4096
        )
        yield row(f"{figure}/first_output", stamps_s[0], "s", detail)
        per_s = (stamps_s[-1] - stamps_s[0]) / (len(stamps_s) - 1)
        yield row(f"{figure}/between_outputs", per_s * 1e3, "ms", detail)


def mixed_rows(hardware: HardwareProfile, context: str) -> Iterator[Row]:
    """The long prompt in short traffic, by policy."""
    tokens, grid = CONTEXTS[context], _MIXED[context]
    room = hardware.capacity_tokens(SHAPE, shards=grid.shards, stages=grid.stages)
    if room < 2 * tokens:
        return
    costs = hardware.costs(SHAPE, shards=grid.shards, stages=grid.stages)
    (alone,), _ = _run(costs, [_long(tokens, 0.0, 1e9)], "fcfs@budget=4096", room)
    queries = _traffic(costs, tokens, alone.output_s[0], room)
    for name, policy in POLICIES.items():
        outcomes, steps = _run(costs, queries, policy, room)
        (long,) = (o for o in outcomes if o.query.prompt_tokens == tokens)
        end_s = long.output_s[0] if long.output_s else long.finish_s
        short = [o for o in outcomes if o is not long and o.query.arrival_s <= end_s]
        first_s = [o.output_s[0] - o.query.arrival_s for o in short if o.output_s]
        beside = [s for s in steps if any(c.query_id == long.query_id for c in s.chunks)]
        prompt = [c.length for s in beside for c in s.chunks if c.query_id == long.query_id]
        detail = _detail(
            hardware,
            grid,
            policy=policy,
            traffic=f"{len(short)} prompts of {_SHORT_PROMPT} tokens and {_SHORT_OUTPUTS} outputs "
            f"while the long prompt is computed, Poisson at load {_LOAD}; first output due after "
            f"{_TTFT_S} s, the others every {_TPOT_S * 1e3:.0f} ms; the long one after "
            f"{_DEADLINE} times its time alone",
            long_ended=long.status,
            mean_quality=float(np.mean([q for o in short for q in o.qualities] or [0.0])),
            chunk_tokens=[max(prompt, default=0), int(np.median(prompt or [0]))],
        )
        figure = f"{_figure(hardware, context, grid)}/mixed/{name}"
        yield row(
            f"{figure}/short_first_output_p99", float(np.percentile(first_s, 99)), "s", detail
        )
        on_time = sum(o.status == "on_time" for o in short) / max(len(short), 1)
        yield row(f"{figure}/short_on_time", on_time, "share", detail)
        stretch = end_s / alone.output_s[0]
        yield row(f"{figure}/long_first_output_over_alone", stretch, "ratio", detail)


def _traffic(costs: IterationCosts, tokens: int, alone_s: float, room: int) -> list[StreamQuery]:
    """The long prompt at 0, and short ones for as long as it takes, or `_MOST_SHORT` of them."""
    probe = [StreamQuery(0, 0.0, _SHORT_PROMPT, _SHORT_OUTPUTS, 1e9, 1.0)]
    (short,), _ = _run(costs, probe, "fcfs@budget=4096", room)
    # What one costs is its prompt, and a part of its decodes: several share an iteration.
    each_s = short.output_s[0] + (short.finish_s - short.output_s[0]) / 8
    rng = np.random.default_rng(0)
    gaps_s = rng.exponential(each_s / _LOAD, _MOST_SHORT)
    arrivals = np.cumsum(gaps_s)
    longest_s = 2.0 * alone_s
    if arrivals[-1] < longest_s:  # then they come as often as they may be counted
        arrivals *= longest_s / arrivals[-1]
    due_s = _DEADLINE * alone_s
    queries = [_long(tokens, 0.0, due_s)]
    for i, at_s in enumerate(arrivals[arrivals <= longest_s].tolist()):
        queries.append(
            StreamQuery(i + 1, at_s, _SHORT_PROMPT, _SHORT_OUTPUTS, at_s + _TTFT_S, _TPOT_S)
        )
    return queries


def _run(
    costs: IterationCosts, queries: list[StreamQuery], policy: str, room: int
) -> tuple[list[StreamOutcome], list[Step]]:
    steps: list[Step] = []
    scheduler = StreamScheduler(
        costs, create_stream_policy(policy, costs), kv_tokens=room, max_running=256
    )
    outcomes = simulate_streams(queries, scheduler, on_step=lambda step, _: steps.append(step))
    return outcomes, steps


def _long(tokens: int, arrival_s: float, due_s: float) -> StreamQuery:
    return StreamQuery(0, arrival_s, tokens, _LONG_OUTPUTS, arrival_s + due_s, 1.0)


def _figure(hardware: HardwareProfile, context: str, grid: WorkerGrid) -> str:
    device = hardware.name.lower().replace("nvidia ", "").split()[0]
    return f"long-context/simulated/{device}/{context}/kvp{grid.shards}_spp{grid.stages}"


def _even(costs: IterationCosts) -> int | None:
    return None if costs.parallel is None else costs.parallel.break_even_tokens


def _detail(hardware: HardwareProfile, grid: WorkerGrid, **more: Any) -> dict[str, Any]:
    return {
        "simulated": True,
        "hardware": f"{hardware.name}, {hardware.dated}: {hardware.source}",
        "assumed": f"roofline at {hardware.flops_per_s:.3g} flop/s and {hardware.bytes_per_s:.3g} "
        f"byte/s reached, {hardware.overhead_s * 1e3:g} ms an iteration, exchanges not overlapped; "
        "qualities of widths made up",
        "model": SHAPE.name,
        "workers": f"{grid.shards} shards x {grid.stages} stages",
        **more,
    }
