"""The switch part of `supernet bench actuation`: the first batch after a switch over a steady one.

All subnets are resident, in fp32 and int8; what a switch costs is that another subnet's weights are
not in the processor's caches. Each step switches to another subnet, at random, and runs it three
times: the first over the mean of the others is the figure, the third over the second its A/A.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import count
from statistics import median

import numpy as np

from serve.bench.rows import Row, Tell, row
from subnetact.executor import Executor, Slot

_LEAST_STEPS = 30


def switch_rows(
    net: str, executor: Executor, *, at_least_s: float = 20.0, tell: Tell = print
) -> list[Row]:
    """Measure one executor, batch 1; medians over steps, thirty of them at least."""
    slots = [executor.stage(executor.sample.zeros(1))]
    ids = executor.subnet_ids
    for subnet_id in ids:
        _run_s(executor, subnet_id, slots)
    steps_s = _steps_s(executor, slots, at_least_s)
    ratio = median(first / ((second + third) / 2) for first, second, third in steps_s)
    again = median(third / second for _, second, third in steps_s)
    first_ms, second_ms, third_ms = (1e3 * median(column) for column in zip(*steps_s, strict=True))
    detail = (
        f"{len(steps_s)} switches among {len(ids)} resident subnets in fp32 and int8, through "
        f"launch and result; medians {first_ms:.3f}, {second_ms:.3f}, {third_ms:.3f} ms"
    )
    tell(f"  {net} switch over steady {ratio:.3f} (A/A {again:.3f})")
    return [
        row(f"actuation/{net}/switch_over_steady/b1", ratio, "ratio", detail),
        row(f"actuation/{net}/steady_over_itself/b1", again, "ratio", detail),
    ]


def _steps_s(
    executor: Executor, slots: Sequence[Slot], at_least_s: float
) -> list[tuple[float, float, float]]:
    """Return the seconds of the three batches of every step."""
    rng = np.random.default_rng(0)
    ids = executor.subnet_ids
    at = 0
    steps_s: list[tuple[float, float, float]] = []
    start_s = time.perf_counter()
    for number in count():
        if number >= _LEAST_STEPS and time.perf_counter() - start_s >= at_least_s:
            break
        at = (at + int(rng.integers(1, len(ids)))) % len(ids)  # never the one that is current
        first, second, third = (_run_s(executor, ids[at], slots) for _ in range(3))
        steps_s.append((first, second, third))
    return steps_s


def _run_s(executor: Executor, subnet_id: str, slots: Sequence[Slot]) -> float:
    start_s = time.perf_counter()
    executor.result(executor.launch(subnet_id, slots))
    return time.perf_counter() - start_s
