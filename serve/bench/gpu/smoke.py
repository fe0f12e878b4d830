"""The first part of `serve.bench.gpu`: does anything run, and right? One minute, one subnet.

Both dtypes, through a graph and streamed, on memory that was filled with NaN before: kernels that
multiply what nobody wrote by zero give NaN then. Says whether convolutions were fused, and why not.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from serve.bench.gpu.cases import GpuBench, random_samples, sizes, static_call
from subnetact.cuda.accelerator import Accelerator
from subnetact.cuda.cuda_executor import CudaExecutor
from supernet import Arch, Checkpoint, define_supernet

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}  # of the largest logit
_MIB = 2**20
# By kind of device; what is small comes from blocks of its own, of which there are many.
_POISON_BYTES = {"cuda": (256 * _MIB, *[_MIB] * 64), "cpu": (_MIB,)}


def smoke(bench: GpuBench) -> None:
    """Run the middle subnet of the first network in every way; a difference is a failure."""
    variant = next(iter(bench.settings.nets.values()))
    archs = sizes(define_supernet(variant))
    checkpoint = bench.checkpoint(variant, tuple(archs.values()))
    arch = archs["mid"]
    fusion = (
        "cuDNN's fused convolution"
        if bench.accelerator.has_fused_convolutions
        else (f"{bench.accelerator.why_not_fused}: convolution, addition and activation apart")
    )
    is_fused = float(bench.accelerator.has_fused_convolutions)
    bench.record("smoke/fused_convolutions", is_fused, "yes or no", fusion)
    why = bench.accelerator.why_in_parts
    is_joined = "norm, addition and activation are one kernel of our own"
    bench.record("smoke/joined_pointwise", float(not why), "yes or no", why or is_joined)
    for dtype, tolerance in _TOLERANCE.items():
        for how, budget_bytes in (("graph", None), ("streamed", 0)):
            start_s = time.perf_counter()
            accelerator = bench.new_accelerator()
            _poison(accelerator)
            executor = bench.executor(
                checkpoint,
                dtype=dtype,
                batch_sizes=(1, 4),
                budget_bytes=budget_bytes,
                accelerator=accelerator,
            )
            executor.warm_up()
            _poison(accelerator)
            _check(bench, executor, checkpoint, arch, how, tolerance)
            executor.close()
            taken_s = time.perf_counter() - start_s
            bench.record(f"smoke/{executor.dtype}/{how}/seconds", taken_s, "s", executor.details)


def _check(
    bench: GpuBench,
    executor: CudaExecutor,
    checkpoint: Checkpoint,
    arch: Arch,
    how: str,
    tolerance: float,
) -> None:
    differences, before = [0.0], executor.counts()
    for batch_size in (1, 3, 4):  # 3 is padded
        inputs = random_samples(checkpoint, batch_size)
        got = executor.run(arch.subnet_id, inputs)
        net = static_call(checkpoint, arch, bench.device, torch.float32)
        expected = net(torch.from_numpy(inputs).to(bench.device)).cpu().numpy()
        if not np.isfinite(got).all():
            bench.failures.append(f"smoke/{executor.dtype}/{how}/b{batch_size}: not finite")
            continue
        differences.append(float(np.abs(got - expected).max() / np.abs(expected).max()))
    worst = float(np.max(differences))  # NaN if one is
    counts = executor.counts()
    count = "graph_replays" if how == "graph" else "streamed_bytes"
    if counts[count] == before[count]:  # it ran another way
        refused = "; ".join(sorted(set(executor.graphs.status.refusals.values())))
        bench.failures.append(f"smoke/{executor.dtype}/{how}: {count} did not go up; {refused}")
    detail = (
        f"largest difference from the extracted float32 subnet over its largest logit, allowed "
        f"{tolerance:g}; {counts['graph_replays']} replays, {counts['eager_batches']} eager, "
        f"{counts['streamed_bytes']} bytes streamed"
    )
    if not worst <= tolerance:
        bench.failures.append(f"smoke/{executor.dtype}/{how}: {worst:.4g} above {tolerance:g}")
    bench.record(f"smoke/{executor.dtype}/{how}/over_extracted", worst, "relative", detail)


def _poison(accelerator: Accelerator) -> None:
    """Leave NaN in the memory that is handed out next on the compute lane.

    What is freed on another lane is not handed out on this one.
    """
    device = accelerator.device
    with accelerator.computing():
        poison = [
            torch.full((size // 4,), torch.nan, device=device)
            for size in _POISON_BYTES[device.type]
        ]
        poison.clear()
