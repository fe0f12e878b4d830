"""A part of `serve.bench.gpu`: what a server gains by launching a batch behind the one that runs.

The engine serves a queue that is always full, with one batch under way (launch, and wait) and with
as many as the executor allows, in turn. On a CPU a device is made up (`PacedAccelerator`): its
batches take 5 ms, and so does the host for each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from statistics import median

import numpy as np

from serve.bench.gpu.cases import GpuBench, random_samples, sizes
from serve.bench.gpu.engine_runs import rough_profile, served_per_s
from subnetact.cuda.accelerator import HostAccelerator, Mark, Replay
from subnetact.cuda.cuda_executor import CudaExecutor
from supernet import Arch, define_supernet

DEVICE_S = HOST_S = 0.005  # a batch of the device that is made up
_BATCHES = {"cuda": 100, "cpu": 30}  # served at a time
_ROUNDS = 3


class PacedAccelerator(HostAccelerator):
    """A CPU in place of a device that takes `device_s` for each batch, one behind the other.

    A launch takes the host `host_s`; a graph's replay computes nothing, since this CPU would do it
    in the host's time: results are of the capture. For one launching thread.
    """

    def __init__(self, device_s: float = DEVICE_S, host_s: float = HOST_S) -> None:
        self._device_s = device_s
        self._host_s = host_s
        self._free_at_s = self._began_s = -inf
        self._is_copying = False

    @contextmanager
    def copying(self) -> Iterator[None]:
        """See `Accelerator`; a launch begins with it."""
        self._began_s = time.monotonic()
        self._is_copying = True
        try:
            yield
        finally:
            self._is_copying = False

    def mark(self) -> Mark:
        """See `Accelerator`; one on the compute lane is the end of a launch."""
        if self._is_copying:
            return super().mark()
        time.sleep(max(0.0, self._began_s + self._host_s - time.monotonic()))
        self._free_at_s = max(time.monotonic(), self._free_at_s) + self._device_s
        return _At(self._free_at_s)

    def capture(self, call: Callable[[], None]) -> tuple[Replay, int]:
        """See `Accelerator`; the call runs now, and never again."""
        call()
        return _Nothing(), 0


class _Nothing:
    def replay(self) -> None:
        pass


class _At:
    def __init__(self, reached_s: float) -> None:
        self._reached_s = reached_s

    def wait(self) -> None:
        time.sleep(max(0.0, self._reached_s - time.monotonic()))


def overlap(bench: GpuBench) -> None:
    """Serve full batches of the first network's subnets with one under way, and with more."""
    net_name, variant = next(iter(bench.settings.nets.items()))
    archs = sizes(define_supernet(variant))
    if bench.device == "cpu":
        archs = {"min": archs["min"]}
    checkpoint = bench.checkpoint(variant, tuple(archs.values()))
    accelerator = PacedAccelerator() if bench.device == "cpu" else None
    executor = bench.executor(checkpoint, accelerator=accelerator)
    executor.warm_up()
    for batch_size in bench.settings.batch_sizes[1:]:
        samples = random_samples(checkpoint, batch_size)
        for size, arch in archs.items():
            if bench.left_s < 0:
                return
            figure = f"overlap/{net_name}/{size}/b{batch_size}/over_launch_and_wait"
            _overlap_of(bench, figure, executor, arch, samples)
    executor.close()


def _overlap_of(
    bench: GpuBench, figure: str, executor: CudaExecutor, arch: Arch, samples: np.ndarray
) -> None:
    profile = rough_profile(executor, arch, samples)
    most, count = executor.num_under_way, _BATCHES[bench.device]
    rates: dict[int, list[float]] = {1: [], most: []}
    try:
        for _ in range(_ROUNDS):
            for num_under_way, of_it in rates.items():
                executor.num_under_way = num_under_way
                of_it.append(served_per_s(executor, profile, samples, count))
    finally:
        executor.num_under_way = most
    ratios = [ahead / waited for waited, ahead in zip(rates[1], rates[most], strict=True)]
    made_up = f"made up: {1e3 * DEVICE_S:g} ms of the device and {1e3 * HOST_S:g} of the host"
    where = "bf16" if bench.device == "cuda" else made_up
    detail = (
        f"{median(rates[most]):.0f} samples/s with {most} batches under way, "
        f"{median(rates[1]):.0f} with one; {count} full batches of single samples, {where}; "
        f"ratios {', '.join(f'{ratio:.2f}' for ratio in ratios)}"
    )
    bench.record(figure, median(ratios), "ratio", detail)
