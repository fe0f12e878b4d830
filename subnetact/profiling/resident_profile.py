"""A profile with the residency axis: every subnet on views, and beside each of several sets.

The sets of compiled subnets are those that save most within a budget: one filled for each subnet
alone, and one for all of them alike. Each is made resident, and every (subnet, batch size) is
measured beside it; what two sets have in common is not loaded anew. A drift of the machine between
two sets is not spread as it is within one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from slackfit.profile import LatencyProfile
from slackfit.residency import Keys, Savings
from slackfit.resident_table import ResidentTable
from subnetact.cpu.graph_executor import GraphExecutor
from subnetact.profiling.profiler import Progress, measure_profile
from subnetact.profiling.sushi_encoding import encode, layers_of, widths_of
from supernet.checkpoint import Checkpoint

FOR_ALL = "for all"


def measure_resident_profile(
    executor: GraphExecutor,
    checkpoint: Checkpoint,
    budget_bytes: int,
    *,
    batch_sizes: tuple[int, ...],
    repeats: int,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> LatencyProfile:
    """Measure an executor that has no budget of its own; sets have at most `budget_bytes`.

    `progress(done, total)` counts rounds over all tables. Raises ValueError for a budget that has
    room for no subnet that saves time, and what `measure_profile` raises. Closes the executor.
    """
    store = executor.store
    savings = executor.measure_savings()
    sets = _sets(savings, executor.subnet_ids, budget_bytes)
    if not sets:
        least = min(store.num_bytes.values())
        raise ValueError(
            f"a residency of {budget_bytes} bytes has room for no subnet that saves time; the "
            f"smallest has {least} bytes"
        )
    total = (1 + len(sets)) * repeats

    def measure(done: int) -> LatencyProfile:
        def show(rounds: int, _: int) -> None:
            if progress is not None:
                progress(done + rounds, total)

        return measure_profile(
            executor, checkpoint, batch_sizes=batch_sizes, repeats=repeats, progress=show
        )

    store.evict_others(())
    base = replace(measure(0), packing="views")  # the profile's own latencies are beside nothing
    widths = {
        i: widths_of(checkpoint.definition, checkpoint.subnet(i).arch) for i in executor.subnet_ids
    }
    layers = layers_of(widths.values())
    tables: list[ResidentTable] = []
    for n, (name, keys) in enumerate(sets.items(), start=1):
        store.evict_others(keys)
        start_s = clock()
        for key in keys:
            store.load(key)
        load_s = clock() - start_s
        beside = measure(n * repeats)
        tables.append(
            ResidentTable(
                residency_id=name,
                num_bytes=savings.num_bytes(keys),
                latency_s={s.subnet_id: s.latency_s for s in beside.subnets},
                load_s=load_s,
                encoding=tuple(encode((widths[str(key)] for key in keys), layers).tolist()),
            )
        )
    executor.close()
    own = {i: encode([row], layers).tolist() for i, row in widths.items()}
    subnets = [replace(s, extra={**s.extra, "encoding": own[s.subnet_id]}) for s in base.subnets]
    return replace(base, residency=tuple(tables), subnets=tuple(subnets))


def _sets(savings: Savings, subnet_ids: tuple[str, ...], budget_bytes: int) -> dict[str, Keys]:
    """Name and sessions of each set; equal ones once."""
    mixes = {f"for {i}": {i: 1.0} for i in subnet_ids}
    mixes[FOR_ALL] = dict.fromkeys(subnet_ids, 1.0 / len(subnet_ids))
    named: dict[Keys, str] = {}
    for name, mix in mixes.items():
        keys = savings.fill(mix, budget_bytes)
        if keys:
            named.setdefault(keys, name)
    return {name: keys for keys, name in named.items()}
