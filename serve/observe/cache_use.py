"""What a device's packed slices are used for, read for the metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from serve.observe.metrics import CacheUse

if TYPE_CHECKING:
    from subnetact.executor import Executor


def cache_use_of(executor: Executor) -> Callable[[], CacheUse] | None:
    """Return how to read the use of an executor's cache; None for one that packs nothing."""
    from subnetact.cpu.packed_executor import PackedExecutor
    from subnetact.cuda.cuda_executor import CudaExecutor

    if not isinstance(executor, PackedExecutor | CudaExecutor):
        return None
    cache = executor.net.cache

    def use() -> CacheUse:
        counts = cache.counts
        return CacheUse(
            hit=counts.hits,
            miss=counts.misses,
            load=counts.loads,
            eviction=counts.evictions,
            held_bytes=cache.held_bytes,
        )

    return use
