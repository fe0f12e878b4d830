"""What a grid of worker processes costs, added to a decoder's profile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from slackfit.profile import LatencyProfile
from slackfit.streams.iteration_cost import IterationCosts
from slackfit.streams.parallel_cost import ParallelCost
from subnetact.decoding.stream_executor import StreamExecutor
from subnetact.parallel.break_even import CONTEXTS, NOWHERE, longest_context, measure_grid
from subnetact.parallel.parallel_executor import ParallelExecutor
from subnetact.parallel.worker_grid import WorkerGrid
from supernet.checkpoint import Checkpoint
from supernet.families.decoder import DecoderConfig


def with_grid(
    measured: LatencyProfile,
    loaded: Checkpoint,
    folder: Path,
    grid: WorkerGrid,
    *,
    threads: int,
    packing: str | None,
    repeats: int,
    tell: Callable[[str], None],
) -> LatencyProfile:
    """Add to a profile what the grid costs, and tell from where shards pay.

    Raises what `measure_grid` and `ParallelExecutor` raise.
    """
    contexts = _contexts(loaded, repeats)
    packing = packing or "views"
    executor = ParallelExecutor(
        loaded,
        grid,
        folder=folder,
        capacity_tokens=2 * max(contexts) + 2048,
        threads=threads,
        packing=packing,
    )
    try:
        plain = StreamExecutor(loaded, capacity_tokens=256, threads=threads, packing=packing)
        cost = measure_grid(executor, plain, contexts=contexts, repeats=repeats, tell=tell).cost
    finally:
        executor.close()
    if grid.shards > 1:
        tell(_where_shards_pay(cost))
    return IterationCosts.of(measured).on_workers(cost).in_profile(measured)


def _contexts(loaded: Checkpoint, repeats: int) -> list[int]:
    """Return the lengths to measure at: two at least, up to the longest that there is time for."""
    config = loaded.definition.config
    assert isinstance(config, DecoderConfig), "only decoders are profiled by iterations"
    longest = longest_context(config.max_positions, repeats)
    contexts = [c for c in CONTEXTS if c < longest] or [longest // 4]
    return [*contexts, longest] if len(contexts) == 1 else contexts


def _where_shards_pay(cost: ParallelCost) -> str:
    even = cost.break_even_tokens
    where = "at no context" if even >= NOWHERE else f"from {even} tokens of context on"
    return f"{cost.shards} shards pay {where}"
