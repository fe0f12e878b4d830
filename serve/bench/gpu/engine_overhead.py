"""Part `engine` of `serve.bench.gpu`: what executor and engine add to a graph's replay.

Of a lone batch: what `run` takes beside the replay (gathering, copies both ways, the wait), and
what the engine takes beside `run` (the queue, the policy, threads, the answer). At full load: which
share of the time the device computes, 1 where the host is hidden behind it.
"""

from __future__ import annotations

from statistics import median

import numpy as np

from serve.bench.gpu.cases import GpuBench, random_samples, sizes
from serve.bench.gpu.engine_runs import alone_s, rough_profile, served_per_s
from subnetact.cuda.cuda_executor import CudaExecutor
from subnetact.cuda.cuda_graphs import GraphKey
from supernet import Arch, define_supernet

_BATCHES = {"cuda": 60, "cpu": 6}  # served at a time
_FIGURES = {"run_less_replay": "ms", "engine_less_run": "ms", "device_busy": "fraction"}


def engine_overhead(bench: GpuBench) -> None:
    """Measure every size of the first network at every batch size."""
    net_name, variant = next(iter(bench.settings.nets.items()))
    archs = sizes(define_supernet(variant))
    checkpoint = bench.checkpoint(variant, tuple(archs.values()))
    executor = bench.executor(checkpoint)
    executor.warm_up()
    for batch_size in bench.settings.batch_sizes:
        samples = random_samples(checkpoint, batch_size)
        for size, arch in archs.items():
            if bench.left_s < 0:
                return
            _overhead_of(bench, f"engine/{net_name}/{size}/b{batch_size}", executor, arch, samples)
    executor.close()


def _overhead_of(
    bench: GpuBench, figure: str, executor: CudaExecutor, arch: Arch, samples: np.ndarray
) -> None:
    replay_s = _replay_s(bench, executor, arch, len(samples))
    if replay_s is None:
        why = executor.graphs.refusal(GraphKey(arch.subnet_id, len(samples)))
        for name, unit in _FIGURES.items():
            bench.absent(f"{figure}/{name}", unit, f"no graph of {arch.subnet_id}: {why}")
        return
    subnet_id = arch.subnet_id
    run_s = median(bench.interleaved({"run": lambda: executor.run(subnet_id, samples)})["run"])
    profile = rough_profile(executor, arch, samples)
    lone_s = alone_s(executor, profile, samples, bench.settings.rounds)
    per_s = served_per_s(executor, profile, samples, _BATCHES[bench.device])
    batch_s = len(samples) / per_s
    detail = (
        f"replay {1e3 * replay_s:.3f} ms, run {1e3 * run_s:.3f}, through the engine alone "
        f"{1e3 * lone_s:.3f}, at full load {1e3 * batch_s:.3f} a batch, {per_s:.0f} samples/s of "
        f"requests of one; {executor.dtype}"
    )
    values = 1e3 * (run_s - replay_s), 1e3 * (lone_s - run_s), replay_s / batch_s
    for (name, unit), value in zip(_FIGURES.items(), values, strict=True):
        bench.record(f"{figure}/{name}", value, unit, detail)


def _replay_s(bench: GpuBench, executor: CudaExecutor, arch: Arch, batch_size: int) -> float | None:
    """Return the median seconds of a graph's replay by the device's own clock; None without one."""
    lease = executor.graphs.lease(arch.subnet_id, batch_size)
    if lease is None:
        return None
    with lease:
        replay = lease.graph.replay
        rounds = range(3 + bench.settings.rounds)
        return median([bench.accelerator.time_s(replay) for _ in rounds][3:])
