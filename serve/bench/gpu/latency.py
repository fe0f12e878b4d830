"""Parts of `serve.bench.gpu`: equality, latency against static networks, switching."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from serve.bench.gpu.cases import (
    GpuBench,
    brief,
    random_samples,
    ratio,
    sizes,
    static_call,
)
from subnetact.cache import SLICE_PACKINGS
from subnetact.cuda.accelerator import Replay
from subnetact.cuda.cuda_executor import CudaExecutor
from subnetact.cuda.cuda_graphs import GraphKey
from subnetact.cuda.cuda_supernet import supernet_bytes
from supernet import Arch, Checkpoint, define_supernet

_BF16_SLACK = 0.01  # of the largest logit, beside twice the error of the extracted net itself
_FP32_TOLERANCE = 1e-3
_QUANTILES = (50, 99)
_SCALES = {"ms": 1e3, "us": 1e6}
_EQUALITY_LEAVES = 0.7  # of the time, to the parts that measure


def equality(bench: GpuBench) -> None:
    """Hold graph, eager and streamed runs against the extracted subnet, at every budget."""
    _compare(bench)
    detail = "; ".join(bench.failures) or "graph, eager, streamed and extracted agree"
    bench.record("equality_failures", len(bench.failures), "count", detail)


def _compare(bench: GpuBench) -> None:
    for net_name, variant in bench.settings.nets.items():
        archs = sizes(define_supernet(variant))
        checkpoint = bench.checkpoint(variant, tuple(archs.values()))
        for dtype in (torch.float32, torch.bfloat16):
            for packing in SLICE_PACKINGS:
                ladder = bench.settings.batch_sizes[:3]
                eager = bench.executor(
                    checkpoint,
                    packing=packing,
                    dtype=dtype,
                    batch_sizes=ladder,
                    graph_budget_bytes=0,
                )
                for share in (None, *((0.0, 0.5, 1.0) if packing == "folded" else (0.4,))):
                    if bench.left_s < _EQUALITY_LEAVES * bench.budget_s:
                        bench.record(
                            "equality/ended_early", 1, "count", f"before {net_name} {dtype}"
                        )
                        return
                    _equality_of(bench, net_name, checkpoint, archs, eager, share)
                eager.close()


def _equality_of(
    bench: GpuBench,
    net_name: str,
    checkpoint: Checkpoint,
    archs: Mapping[str, Arch],
    eager: CudaExecutor,
    share: float | None,
) -> None:
    packing, dtype = eager.packing, eager.net.dtype
    budget = None
    if share is not None:
        budget = int(share * supernet_bytes(checkpoint.definition, dtype))
    name, ladder = eager.dtype, eager.batch_sizes
    captured = bench.executor(
        checkpoint, packing=packing, dtype=dtype, batch_sizes=ladder, budget_bytes=budget
    )
    captured.warm_up()
    worst = {"graph_over_fp32": 0.0, "graph_over_eager": 0.0, "extracted_over_fp32": 0.0}
    for size, arch in archs.items():
        inputs = random_samples(checkpoint, max(1, ladder[-1] - 1))  # padded
        reference = _extracted(bench, checkpoint, arch, torch.float32, inputs)
        own = _difference(_extracted(bench, checkpoint, arch, dtype, inputs), reference)
        for _ in range(2):  # the second run prefetches what it streams
            got, plain = (e.run(arch.subnet_id, inputs) for e in (captured, eager))
            allowed = _FP32_TOLERANCE if dtype == torch.float32 else 2 * own + _BF16_SLACK
            for how, logits in ((f"budget {share}", got), ("eager", plain)):
                error = _difference(logits, reference)
                if not error <= allowed:
                    where = f"{net_name}/{size}/{name}/{packing}/{how}"
                    bench.failures.append(f"{where}: {error:.4g} above {allowed:.4g}")
            _note_worst(worst, "graph_over_fp32", _difference(got, reference))
            _note_worst(worst, "graph_over_eager", _difference(got, plain))
        _note_worst(worst, "extracted_over_fp32", own)
    counts = captured.counts()
    detail = (
        f"largest difference over largest logit, of min, mid, max; {counts['graph_replays']} "
        f"replays, {counts['eager_batches']} eager, {counts['held_bytes']} bytes resident, "
        f"{counts['streamed_bytes']} streamed"
    )
    label = "all" if share is None else f"{share:.0%}"
    for what, value in worst.items():
        figure = f"equality/{net_name}/{name}/{packing}/budget_{label}/{what}"
        bench.record(figure, value, "relative", detail)
    captured.close()


def _note_worst(worst: dict[str, float], name: str, value: float) -> None:
    worst[name] = float(np.maximum(worst[name], value))  # NaN if one is


def latency(bench: GpuBench) -> None:
    """Time the actuated graph against the extracted network: eager, and captured itself."""
    for net_name, variant in bench.settings.nets.items():
        archs = sizes(define_supernet(variant))
        checkpoint = bench.checkpoint(variant, tuple(archs.values()))
        executors = {
            packing: bench.executor(checkpoint, packing=packing) for packing in SLICE_PACKINGS
        }
        for packing, executor in executors.items():
            start_s = time.perf_counter()
            executor.warm_up()
            taken_s = time.perf_counter() - start_s
            counts = executor.counts()
            detail = (
                f"{counts['graphs_live']} graphs live, {counts['graphs_refused']} refused "
                f"({executor.details}), slices {counts['held_bytes']} bytes"
            )
            bench.record(f"{net_name}/{packing}/warm_up", taken_s, "s", detail)
            bench.record(
                f"{net_name}/{packing}/graph_bytes", counts["graph_bytes"], "bytes", detail
            )
        for batch_size in bench.settings.batch_sizes:
            for size, arch in archs.items():
                if bench.left_s < 0:
                    return
                figure = f"{net_name}/{size}/b{batch_size}"
                _latency_of(bench, figure, checkpoint, executors, arch, batch_size)
        for executor in executors.values():
            executor.close()
        bench.accelerator.drop_captures()  # last: see CudaAccelerator


def _latency_of(
    bench: GpuBench,
    figure: str,
    checkpoint: Checkpoint,
    executors: Mapping[str, CudaExecutor],
    arch: Arch,
    batch_size: int,
) -> None:
    inputs = random_samples(checkpoint, batch_size)
    samples = torch.from_numpy(inputs).to(bench.device)
    static = static_call(checkpoint, arch, bench.device, torch.bfloat16)
    calls: dict[str, Callable[[], object]] = {"static_eager": lambda: static(samples)}
    captured, _ = capture_static(bench, lambda: static(samples))
    calls["static_graph"] = captured.replay
    for packing, executor in executors.items():
        lease = executor.graphs.lease(arch.subnet_id, batch_size)
        if lease is not None:
            with lease:
                calls[packing] = lease.graph.replay
        calls[f"{packing}_host_to_host"] = _host_to_host(executor, arch.subnet_id, inputs)
    samples_s = bench.interleaved(calls)
    for packing, executor in executors.items():
        for over in ("static_eager", "static_graph"):
            name = f"{figure}/{packing}_graph_over_{over}"
            if packing in calls:
                bench.record(name, ratio(samples_s, packing, over), "ratio", brief(samples_s))
            else:
                refused = executor.graphs.refusal(GraphKey(arch.subnet_id, batch_size))
                bench.absent(name, "ratio", f"no graph of {arch.subnet_id}: {refused}")
    for name in calls:
        value = float(np.median(samples_s[name])) * 1e3
        bench.record(f"{figure}/{name}", value, "ms", "uint8 in, logits out; bf16, channels-last")


def _host_to_host(executor: CudaExecutor, subnet_id: str, inputs: np.ndarray) -> Callable:
    return lambda: executor.run(subnet_id, inputs)


def capture_static(bench: GpuBench, call: Callable[[], object]) -> tuple[Replay, int]:
    """Capture a static network as the actuated ones are captured: algorithms searched for."""

    def run() -> None:
        kept["y"] = call()

    kept: dict[str, object] = {}
    with bench.accelerator.searching():
        bench.accelerator.peak_bytes(run)  # warms up
    return bench.accelerator.capture(run)


def switching(bench: GpuBench) -> None:
    """Time choosing another subnet's graph, and a batch after a switch against one without."""
    for net_name, variant in bench.settings.nets.items():
        archs = sizes(define_supernet(variant))
        checkpoint = bench.checkpoint(variant, tuple(archs.values()))
        executor = bench.executor(checkpoint, batch_sizes=(1,))
        executor.warm_up()
        record_actuations(bench, f"{net_name}/switch", executor, "us")
        _after_a_switch(bench, net_name, executor, checkpoint)
        executor.close()


def record_actuations(
    bench: GpuBench, figure: str, executor: CudaExecutor, unit: str
) -> list[float]:
    """Record quantiles of choosing the graph of a drawn subnet at batch 1; return the seconds.

    Where a subnet has no graph there is nothing to choose: rows without a value, and no seconds.
    """
    ids, scale = executor.subnet_ids, _SCALES[unit]
    bare = [i for i in ids if not executor.graphs.ladders.get(i)]
    if bare:
        why = f"no graph of {bare[0]}: {executor.graphs.refusal(GraphKey(bare[0], 1))}"
        for quantile in _QUANTILES:
            bench.absent(f"{figure}_p{quantile}", unit, why)
        return []
    taken_s: list[float] = []
    for i in np.random.default_rng(0).integers(len(ids), size=bench.settings.switches):
        start_s = time.perf_counter()
        lease = executor.graphs.lease(ids[i], 1)
        taken_s.append(time.perf_counter() - start_s)
        assert lease is not None, "each has a graph"
        with lease:
            pass
    detail = f"choosing the graph of one of {len(ids)} subnets, {len(taken_s)} times, no replay"
    for quantile in _QUANTILES:
        value = float(np.percentile(taken_s, quantile)) * scale
        bench.record(f"{figure}_p{quantile}", value, unit, detail)
    return taken_s


def _after_a_switch(
    bench: GpuBench, net_name: str, executor: CudaExecutor, checkpoint: Checkpoint
) -> None:
    inputs = random_samples(checkpoint, 1)
    first, *_, last = executor.subnet_ids
    calls: dict[str, Callable[[], object]] = {}
    for name, before in (("after_itself", first), ("after_a_switch", last)):

        def pair(before: str = before) -> None:
            executor.run(before, inputs)
            start_s = time.perf_counter()
            executor.run(first, inputs)
            taken.append(time.perf_counter() - start_s)

        calls[name] = pair
    taken: list[float] = []
    bench.interleaved(calls)
    own, switched = (float(np.median(taken[n::2])) * 1e3 for n in (0, 1))
    detail = f"batch 1, host to host: {switched:.4f} ms after another subnet, {own:.4f} ms after it"
    bench.record(f"{net_name}/after_a_switch_over_after_itself", switched / own, "ratio", detail)


def _extracted(
    bench: GpuBench, checkpoint: Checkpoint, arch: Arch, dtype: torch.dtype, inputs: np.ndarray
) -> np.ndarray:
    call = static_call(checkpoint, arch, bench.device, dtype)
    return call(torch.from_numpy(inputs).to(bench.device)).cpu().numpy()


def _difference(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())
