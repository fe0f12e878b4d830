"""A profile with the residency axis: every subnet on views, and beside each of several subgraphs.

The subgraphs are those that save most within a budget: one filled for each subnet alone, and one
for all of them alike. Each is loaded into the real cache, and every (subnet, batch size) is
measured beside it; what two subgraphs have in common is loaded anew, so a drift of the machine
between them is not spread as it is within one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from slackfit.profile import LatencyProfile
from slackfit.residency import Keys, Savings
from slackfit.resident_table import ResidentTable
from subnetact.cpu.packed_executor import PackedExecutor
from subnetact.cpu.savings import measure_savings
from subnetact.profiling.profiler import Progress, measure_profile
from subnetact.profiling.sushi_encoding import encode, layers_of
from subnetact.threads import computing_with
from supernet.checkpoint import Checkpoint

FOR_ALL = "for all"


def measure_resident_profile(
    checkpoint: Checkpoint,
    budget_bytes: int,
    *,
    batch_sizes: tuple[int, ...],
    repeats: int,
    threads: int | None = 1,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> LatencyProfile:
    """Measure on a CPU; subgraphs have at most `budget_bytes`.

    `progress(done, total)` counts rounds over all tables. Raises ValueError for a budget that has
    room for no slice, and what `measure_profile` raises.
    """
    executor = PackedExecutor(
        checkpoint, threads=threads, max_batch_size=max(batch_sizes), budget_bytes=0
    )
    executor.packing = "views"  # the profile's own latencies are beside nothing
    net = executor.net
    with computing_with(threads):
        savings, slices = measure_savings(net, executor.subnet_ids)
        subgraphs = _subgraphs(savings, executor.subnet_ids, budget_bytes)
        if not subgraphs:
            raise ValueError(
                f"a residency of {budget_bytes} bytes has room for no slice that saves time; the "
                f"smallest slice has {min(form.num_bytes for form in slices.values())} bytes"
                if slices
                else "this build of torch cannot pack for oneDNN here: nothing can be resident"
            )
        total = (1 + len(subgraphs)) * repeats

        def measure(done: int) -> LatencyProfile:
            def show(rounds: int, _: int) -> None:
                if progress is not None:
                    progress(done + rounds, total)

            return measure_profile(
                executor, checkpoint, batch_sizes=batch_sizes, repeats=repeats, progress=show
            )

        base = measure(0)
        executor.cache.budget_bytes = budget_bytes
        layers = layers_of(slices)
        tables: list[ResidentTable] = []
        for n, (name, keys) in enumerate(subgraphs.items(), start=1):
            executor.cache.clear()
            start_s = clock()
            net.load(form for key, form in slices.items() if key in keys)
            load_s = clock() - start_s
            beside = measure(n * repeats)
            tables.append(
                ResidentTable(
                    residency_id=name,
                    num_bytes=savings.num_bytes(keys),
                    latency_s={s.subnet_id: s.latency_s for s in beside.subnets},
                    load_s=load_s,
                    encoding=tuple(encode((k for k in slices if k in keys), layers).tolist()),
                )
            )
        encodings = {
            i: encode((form.key for form in net.slices(i, "shared")), layers).tolist()
            for i in executor.subnet_ids
        }
    executor.close()
    return replace(
        base,
        residency=tuple(tables),
        subnets=tuple(
            replace(s, extra={**s.extra, "encoding": encodings[s.subnet_id]}) for s in base.subnets
        ),
    )


def _subgraphs(savings: Savings, subnet_ids: tuple[str, ...], budget_bytes: int) -> dict[str, Keys]:
    """Name and slices of each subgraph; equal ones once."""
    mixes = {f"for {i}": {i: 1.0} for i in subnet_ids}
    mixes[FOR_ALL] = dict.fromkeys(subnet_ids, 1.0 / len(subnet_ids))
    named: dict[Keys, str] = {}
    for name, mix in mixes.items():
        keys = savings.fill(mix, budget_bytes)
        if keys:
            named.setdefault(keys, name)
    return {name: keys for keys, name in named.items()}
