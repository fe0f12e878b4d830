"""The profiler: measures a `LatencyProfile` on this device.

Measured through the executor, host to host, so that copies and normalisation count.
The order is interleaved: every round visits each (subnet, batch size) once, in a new random
order, so a drift of the machine's speed spreads over all entries instead of bending one.

Where a device computes by itself, the profile also has `steady`: the median time of a batch while
others like it are under way, as at full load, when what the host does is hidden behind the device.
Where it replays captured graphs there is `eager` too, the median without (`slackfit.graph_forms`).
Policies go by the quantiles, which are of a batch alone.
"""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, cast

import numpy as np

from slackfit.graph_forms import EAGER
from slackfit.profile import LatencyProfile, SubnetProfile
from slackfit.work_table import WorkTable
from subnetact.device import device_name
from subnetact.executor import Executor
from subnetact.profiling.work_inputs import work_inputs
from supernet.checkpoint import Checkpoint

DEFAULT_BATCH_SIZES = (1, 2, 4, 8, 16)
_QUANTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0}
_WARM_UP_RUNS = 2
STEADY = "steady"
_STEADY_BATCHES = 4  # timed at a time
_BESIDES_EVERY = 4  # rounds: other forms than the one that quantiles are of
_ANY = -1  # in place of a bucket: samples as they come

Progress = Callable[[int, int], None]


def measure_profile(
    executor: Executor,
    checkpoint: Checkpoint,
    *,
    batch_sizes: Iterable[int] = DEFAULT_BATCH_SIZES,
    repeats: int = 20,
    name: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> LatencyProfile:
    """Measure latency quantiles of every subnet at every batch size, `repeats` runs each.

    Where samples differ in work, as nodes of a graph do, each bucket of work is measured too.
    `progress(done, total)` is called after every round. Raises ValueError for batch sizes that
    the executor does not take. p95 and p99 of few repeats are the slowest runs seen.
    """
    sizes = tuple(sorted(set(batch_sizes)))
    if not sizes or sizes[0] < 1 or sizes[-1] > executor.max_batch_size:
        raise ValueError(
            f"batch sizes are {list(sizes)}, allowed 1 to {executor.max_batch_size} "
            "(the executor's largest batch)"
        )
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}, allowed 1 or more")
    device = device_name(executor.device)
    executor.warm_up()  # what is captured at the start must be, before anything is timed
    rng = np.random.default_rng(seed)
    inputs = {(_ANY, size): executor.sample.noise(size, rng) for size in sizes}
    bounds, of_work = work_inputs(executor, sizes, rng)
    samples_s, besides_s = _measure(executor, inputs | of_work, repeats, rng, progress)

    def quantiles(subnet_id: str, bucket: int) -> dict[str, tuple[float, ...]]:
        found = _quantiles([samples_s[subnet_id, bucket, size] for size in sizes])
        for name, times_s in besides_s.items():
            rows_s = [times_s[subnet_id, bucket, size] for size in sizes]
            found[name] = tuple(float(np.median(row)) for row in rows_s)
        return found

    return LatencyProfile(
        name=name or f"{checkpoint.name} on {device}",
        device=device,
        dtype=executor.dtype,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source="; ".join(filter(None, (_source(repeats), executor.details))),
        checkpoint=checkpoint.fingerprint,
        versions={"torch": version("torch"), "python": platform.python_version()},
        threads=executor.threads,
        packing=executor.packing,
        padded=getattr(executor, "is_padded", False),
        output_kind=checkpoint.definition.output.kind,
        batch_sizes=sizes,
        subnets=tuple(
            SubnetProfile(
                subnet_id=subnet_id,
                accuracy=checkpoint.subnet(subnet_id).accuracy,
                macs=checkpoint.subnet(subnet_id).macs,
                latency_s=quantiles(subnet_id, _ANY),
            )
            for subnet_id in executor.subnet_ids
        ),
        work=None
        if not bounds
        else WorkTable(
            bounds=bounds,
            latency_s=tuple(
                {subnet_id: quantiles(subnet_id, bucket) for subnet_id in executor.subnet_ids}
                for bucket in range(len(bounds) + 1)
            ),
        ),
    )


_Entry = tuple[str, int, int]
"""A subnet, a bucket of work, a batch size."""


def _measure(
    executor: Executor,
    inputs: Mapping[tuple[int, int], np.ndarray],
    repeats: int,
    rng: np.random.Generator,
    progress: Progress | None,
) -> tuple[dict[_Entry, list[float]], dict[str, dict[_Entry, list[float]]]]:
    """Seconds of batches alone, and by name in other forms; `inputs` are by bucket and size."""
    entries = [(subnet_id, *key) for subnet_id in executor.subnet_ids for key in inputs]
    samples_s: dict[_Entry, list[float]] = {entry: [] for entry in entries}
    besides = _other_forms(executor)
    besides_s = {name: {entry: list[float]() for entry in entries} for name in besides}
    for round_number in range(-_WARM_UP_RUNS, repeats):
        for i in rng.permutation(len(entries)):
            subnet_id, bucket, size = entries[i]
            given = inputs[bucket, size]
            taken_s = _seconds_alone(executor, subnet_id, given)
            if round_number >= 0:
                samples_s[entries[i]].append(taken_s)
            if round_number >= 0 and round_number % _BESIDES_EVERY == 0:
                for name, seconds in besides.items():
                    besides_s[name][entries[i]].append(seconds(executor, subnet_id, given))
        if progress is not None and round_number >= 0:
            progress(round_number + 1, repeats)
    return samples_s, besides_s


_Seconds = Callable[[Executor, str, np.ndarray], float]


def _other_forms(executor: Executor) -> dict[str, _Seconds]:
    """How a batch is timed in other forms than alone, on whatever serves it."""
    forms: dict[str, _Seconds] = {}
    if executor.num_under_way > 1:
        forms[STEADY] = steady_batch_s
    if executor.counts().get("graphs_live"):
        forms[EAGER] = _seconds_without_graphs
    return forms


def _seconds_alone(executor: Executor, subnet_id: str, samples: np.ndarray) -> float:
    start_s = time.perf_counter()
    executor.run(subnet_id, samples)
    return time.perf_counter() - start_s


def _seconds_without_graphs(executor: Executor, subnet_id: str, samples: np.ndarray) -> float:
    """Seconds of a batch alone, launched call by call."""
    with cast("Any", executor).without_graphs():
        return _seconds_alone(executor, subnet_id, samples)


def steady_batch_s(
    executor: Executor,
    subnet_id: str,
    samples: np.ndarray,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the seconds per batch (B, ...) while as many are under way as may be."""
    slots = [executor.stage(samples)]

    def launch() -> Any:
        return executor.launch(subnet_id, slots)

    under_way = deque(launch() for _ in range(executor.num_under_way))
    executor.result(under_way.popleft())
    start_s = clock()
    for _ in range(_STEADY_BATCHES):
        under_way.append(launch())
        executor.result(under_way.popleft())
    taken_s = clock() - start_s
    for launched in under_way:
        executor.result(launched)
    return taken_s / _STEADY_BATCHES


def _source(repeats: int) -> str:
    return f"measured by subnetact.profiling.profiler, {repeats} interleaved runs per entry"


def _quantiles(samples_s: list[list[float]]) -> dict[str, tuple[float, ...]]:
    return {
        name: tuple(float(np.percentile(row, q)) for row in samples_s)
        for name, q in _QUANTILES.items()
    }
