"""The profiler of decoders: measures what an iteration takes at each width, and fits its cost.

Through the executor that serves, so everything an iteration does counts. The order is interleaved:
every round visits each (width, kind of iteration) once, in a new random order. Some kinds are kept
out of the fit and judge it; a cost that misses them is refused, since every decision rests on it.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import torch

from slackfit.profile import LatencyProfile, SubnetProfile
from slackfit.streams.iteration_cost import IterationCosts, IterationWork
from subnetact.decoding.extents import Run
from subnetact.decoding.ragged_batch import Chunk
from subnetact.decoding.stream_executor import StreamExecutor
from subnetact.device import device_name
from subnetact.profiling.iteration_fit import MeasuredIteration, fit_iterations, relative_errors
from supernet.checkpoint import Checkpoint

MAX_ERROR = 0.15
_WARM_UP_ROUNDS = 1
_CONTEXTS = (32, 448)
_CHUNKS = (16, 64, 128, 256)
Kind = tuple[tuple[int, int, bool], ...]  # per chunk: tokens cached, tokens, whether it samples


def grid(decodes: Iterable[int], longest: int) -> tuple[list[Kind], list[Kind]]:
    """Return kinds of iterations to fit by and others to judge by, none longer than `longest`."""
    contexts = [c for c in _CONTEXTS if c < longest] or [max(1, longest // 2)]
    counts = sorted(set(decodes))
    fitted: list[Kind] = [((c, 1, True),) * n for n in counts for c in contexts]
    fitted += [((c, 1, False),) * n for n in (1, counts[-1]) for c in contexts]
    sizes = [b for b in _CHUNKS if b + contexts[-1] <= longest] or [max(2, longest // 4)]
    fitted += [((c, b, False),) for b in sizes for c in (0, contexts[-1])]
    fitted += [((contexts[0], 1, True),) * counts[-1] + ((0, b, True),) for b in sizes]
    middle = contexts[-1] // 2
    judged: list[Kind] = [((middle, 1, True),) * max(1, n - 1) for n in counts[1:]]
    judged += [
        ((middle, 1, True),) * (counts[-1] // 2) + ((middle, max(2, b * 3 // 4), False),)
        for b in sizes
    ]
    return fitted, judged


def measure_iterations(
    executor: StreamExecutor,
    checkpoint: Checkpoint,
    *,
    decodes: Iterable[int] = (1, 2, 4, 8, 16),
    repeats: int = 5,
    seed: int = 0,
    max_error: float = MAX_ERROR,
    progress: Callable[[int, int], None] | None = None,
) -> LatencyProfile:
    """Return a profile with `iterations`; its batch sizes are streams that decode together.

    Raises ValueError for counts below 1 or that the executor's cache has no room for, RuntimeError
    when the fitted cost misses the held-out iterations by more than `max_error` on average.
    """
    counts = tuple(sorted(set(decodes)))
    if not counts or counts[0] < 1 or repeats < 1:
        raise ValueError(f"decodes are {list(counts)}, repeats {repeats}; allowed 1 or more")
    fitted_kinds, judged_kinds = grid(counts, executor.max_positions)
    kinds = list(dict.fromkeys([*fitted_kinds, *judged_kinds]))
    _check_room(executor, kinds, counts[-1])
    executor.warm_up()  # what is captured at the start must be, before anything is timed
    _write_contexts(executor, kinds)
    seconds = _measure(executor, kinds, repeats, np.random.default_rng(seed), progress)
    measured = {
        key: MeasuredIteration(key[0], IterationWork.of(key[1]), statistics.median(row))
        for key, row in seconds.items()
    }
    ids = executor.subnet_ids
    rungs = fit_iterations(
        [measured[i, kind] for i in ids for kind in fitted_kinds],
        {i: checkpoint.subnet(i).accuracy for i in ids},
        _depths(checkpoint),
    )
    errors = relative_errors(rungs, [measured[i, kind] for i in ids for kind in judged_kinds])
    error = statistics.fmean(errors)
    if error > max_error:
        raise RuntimeError(
            f"the fitted cost misses iterations that it has not seen by {error:.0%} on average, "
            f"allowed {max_error:.0%}; measure again on a machine with nothing else to do"
        )
    costs = IterationCosts(
        quality_kind=checkpoint.accuracy_source.partition(":")[0] or "unmeasured",
        rungs=rungs,
        extra={
            "held_out_error": {"mean": error, "max": max(errors), "iterations": len(errors)},
        },
    )
    first = fitted_kinds[0][0][0]  # tokens cached of the first kind: decodes behind a short context
    decode_s = {i: tuple(measured[i, ((first, 1, True),) * n].seconds for n in counts) for i in ids}
    source = (
        f"measured by subnetact.profiling.iteration_profiler, {repeats} interleaved runs "
        f"per iteration; batch: streams that decode at {first} cached tokens"
    )
    return costs.in_profile(_decoding_profile(executor, checkpoint, source, counts, decode_s))


def _check_room(executor: StreamExecutor, kinds: list[Kind], num_streams: int) -> None:
    """Raise ValueError where the cache has no room for the largest of the kinds."""
    table = executor.cache.table
    needed = max(sum(_blocks(c, table.block_tokens) for c in kind) for kind in kinds)
    if needed > table.capacity_tokens:
        raise ValueError(
            f"{num_streams} streams need {needed} tokens of cache, it has {table.capacity_tokens}"
        )


def _decoding_profile(
    executor: StreamExecutor,
    checkpoint: Checkpoint,
    source: str,
    counts: tuple[int, ...],
    decode_s: Mapping[str, tuple[float, ...]],
) -> LatencyProfile:
    """Return the profile of batches that are so many decodes; `decode_s` as they took, by id."""
    device = device_name(str(executor.device))
    return LatencyProfile(
        name=f"{checkpoint.name} on {device}",
        device=device,
        dtype=executor.dtype,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=source,
        checkpoint=checkpoint.fingerprint,
        versions={"torch": version("torch"), "python": platform.python_version()},
        threads=executor.threads,
        packing=executor.packing,
        output_kind=checkpoint.definition.output.kind,
        batch_sizes=counts,
        subnets=tuple(
            SubnetProfile(
                subnet_id=subnet_id,
                accuracy=checkpoint.subnet(subnet_id).accuracy,
                macs=checkpoint.subnet(subnet_id).macs,
                latency_s={"p50": row},
            )
            for subnet_id, row in decode_s.items()
        ),
    )


def _measure(
    executor: StreamExecutor,
    kinds: list[Kind],
    repeats: int,
    rng: np.random.Generator,
    progress: Callable[[int, int], None] | None,
) -> dict[tuple[str, Kind], list[float]]:
    entries = [(subnet_id, kind) for subnet_id in executor.subnet_ids for kind in kinds]
    seconds: dict[tuple[str, Kind], list[float]] = {entry: [] for entry in entries}
    for round_number in range(-_WARM_UP_ROUNDS, repeats):
        for i in rng.permutation(len(entries)):
            subnet_id, kind = entries[i]
            taken_s = _run(executor, subnet_id, kind)
            if round_number >= 0:
                seconds[entries[i]].append(taken_s)
        if progress is not None and round_number >= 0:
            progress(round_number + 1, repeats)
    return seconds


def _write_contexts(executor: StreamExecutor, kinds: list[Kind]) -> None:
    """Write what iterations will find cached: an unwritten cache is one page of zeros to read."""
    slots: set[int] = set()
    for kind in kinds:
        with _cached(executor, kind) as runs:
            slots.update(slot for begin, length in runs for slot in range(begin, begin + length))
    executor.cache.fill(torch.tensor(sorted(slots), dtype=torch.long), seed=0)


def _run(executor: StreamExecutor, subnet_id: str, kind: Kind) -> float:
    """Seconds of one iteration behind contexts that were written (`_write_contexts`)."""
    chunks = [Chunk(i, (1,) * tokens, samples) for i, (_, tokens, samples) in enumerate(kind)]
    with _cached(executor, kind):
        start_s = time.perf_counter()
        executor.run(subnet_id, chunks)
        return time.perf_counter() - start_s


@contextmanager
def _cached(executor: StreamExecutor, kind: Kind) -> Iterator[list[Run]]:
    """Have streams hold what a kind finds cached; yields where that lies."""
    table = executor.cache.table
    runs: list[Run] = []
    try:
        for i, (cached, _, _) in enumerate(kind):
            if cached:
                table.reserve(i, cached)
                table.advance(i, cached)
                runs += table.slots(i, 0, cached)
        yield runs
    finally:
        for i in range(len(kind)):
            executor.release(i)


def _blocks(chunk: tuple[int, int, bool], block_tokens: int) -> int:
    return -(-(chunk[0] + chunk[1]) // block_tokens) * block_tokens


def _depths(checkpoint: Checkpoint) -> dict[str, float]:
    """The share of the blocks that each served subnet keeps."""
    largest = checkpoint.definition.space.largest.depth[0]
    return {form.subnet_id: form.arch.depth[0] / largest for form in checkpoint.forms}
