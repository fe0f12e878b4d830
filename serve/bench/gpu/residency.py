"""Parts of `serve.bench.gpu`: streaming under a budget, residency policies, a latency profile."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import mean

import numpy as np
import torch

from serve.bench.gpu.cases import (
    GpuBench,
    brief,
    random_samples,
    ratio,
    six,
    sizes,
)
from slackfit.residency import Candidate, Savings, ValuePerByte
from subnetact.cuda.cuda_executor import CudaExecutor
from subnetact.cuda.cuda_slice import CudaSlice
from subnetact.cuda.cuda_supernet import supernet_bytes
from subnetact.profiling.profiler import measure_profile
from supernet import Checkpoint, define_supernet

_SHARE = 0.4  # of the supernet's bytes: SUSHI's question asked of a GPU


def streaming(bench: GpuBench) -> None:
    """Time the largest subnet with only a share of the supernet's bytes on the device."""
    net_name, variant = next(iter(bench.settings.nets.items()))
    arch = sizes(define_supernet(variant))["max"]
    checkpoint = bench.checkpoint(variant, (arch,))
    whole = supernet_bytes(checkpoint.definition, torch.bfloat16)
    executors = {
        f"budget_{share:.0%}": bench.executor(
            checkpoint, budget_bytes=int(share * whole), graph_budget_bytes=0
        )
        for share in bench.settings.shares
    }
    executors["no_budget"] = bench.executor(checkpoint, graph_budget_bytes=0)
    for batch_size in (bench.settings.batch_sizes[0], bench.settings.batch_sizes[-1]):
        inputs = random_samples(checkpoint, batch_size)
        calls = {name: _run(e, arch.subnet_id, inputs) for name, e in executors.items()}
        samples_s = bench.interleaved(calls)
        for name, executor in executors.items():
            if name == "no_budget":
                continue
            before = executor.net.stream.num_copied_bytes
            executor.run(arch.subnet_id, inputs)
            streamed = executor.net.stream.num_copied_bytes - before
            counts = executor.counts()
            detail = (
                f"largest subnet, eager, bf16, folded: {streamed} bytes streamed per batch, "
                f"{counts['held_bytes']} resident, {counts['fixed_bytes']} fixed, of {whole}; "
                f"{brief({k: samples_s[k] for k in (name, 'no_budget')})}"
            )
            value = ratio(samples_s, name, "no_budget")
            bench.record(
                f"{net_name}/max/b{batch_size}/{name}_over_no_budget", value, "ratio", detail
            )


def residency(bench: GpuBench) -> None:
    """Serve streams of six subnets under a budget: no cache, filled once, `ValuePerByte`."""
    archs = six(bench.settings.six_family)
    checkpoint = bench.checkpoint(bench.settings.six_family, tuple(archs.values()))
    budget = int(_SHARE * supernet_bytes(checkpoint.definition, torch.bfloat16))
    ids = [arch.subnet_id for arch in archs.values()]
    rng = np.random.default_rng(0)
    streams = {
        "iid": [ids[i] for i in rng.integers(len(ids), size=bench.settings.stream_length)],
        "phases": _phases(ids, bench.settings.stream_length, rng),
    }
    rate = _copy_rate(bench)
    bench.record("copy_rate", rate / 1e9, "GB/s", "page-locked host memory to device, 8 MiB")
    for batch_size in (1, 4):
        if batch_size > bench.settings.batch_sizes[-1]:
            continue
        for name, stream in streams.items():
            if bench.left_s < 0:
                return
            _residency_of(bench, f"sgs/{name}/b{batch_size}", checkpoint, stream, budget, rate)


def _residency_of(
    bench: GpuBench,
    figure: str,
    checkpoint: Checkpoint,
    stream: Sequence[str],
    budget: int,
    rate: float,
) -> None:
    batch_size = int(figure.rpartition("b")[2])
    inputs = random_samples(checkpoint, batch_size)
    executor = bench.executor(
        checkpoint,
        packing="shared",
        batch_sizes=(batch_size,),
        budget_bytes=budget,
        graph_budget_bytes=0,
    )
    slices = {s.key: s for i in executor.subnet_ids for s in executor.net.slices(i)}
    savings = _savings(executor, slices, rate)
    room = executor.net.cache.budget_bytes or 0
    uniform = {i: stream.count(i) / len(stream) for i in executor.subnet_ids}
    fixed = savings.fill(uniform, room)
    policies: dict[str, Callable[[str], object]] = {
        "no_cache": lambda _: frozenset(),
        "filled_once": lambda _: fixed,
        "value_per_byte": ValuePerByte(savings, room).observe,
    }
    mean_s: dict[str, float] = {}
    for name, observe in policies.items():
        executor.make_resident([])
        for subnet_id in executor.subnet_ids:
            executor.run(subnet_id, inputs)  # programs are traced, algorithms chosen
        mean_s[name] = _serve(bench, executor, slices, stream, inputs, observe)
    for name in ("filled_once", "value_per_byte"):
        detail = (
            f"{len(stream)} batches, eager, bf16, shared slices, budget {budget} bytes; mean "
            f"{mean_s[name] * 1e3:.3f} ms against {mean_s['no_cache'] * 1e3:.3f} ms, with loading"
        )
        bench.record(
            f"{figure}/{name}_over_no_cache", mean_s[name] / mean_s["no_cache"], "ratio", detail
        )
    executor.close()


def _serve(
    bench: GpuBench,
    executor: CudaExecutor,
    slices: dict,
    stream: Sequence[str],
    inputs: np.ndarray,
    observe: Callable[[str], object],
) -> float:
    """Serve a stream and return the mean seconds per batch, loading included."""
    taken_s: list[float] = []
    resident: frozenset = frozenset()
    for subnet_id in stream:
        start_s = time.perf_counter()
        executor.run(subnet_id, inputs)
        wanted = observe(subnet_id)
        if isinstance(wanted, frozenset) and wanted != resident:
            executor.make_resident(slices[key] for key in wanted)
            bench.sync()
            resident = wanted
        taken_s.append(time.perf_counter() - start_s)
    return mean(taken_s)


def _savings(executor: CudaExecutor, slices: dict, rate: float) -> Savings:
    """A resident slice saves each subnet that uses it the copy; loading costs one."""
    users: dict[object, list[str]] = {}
    for subnet_id in executor.subnet_ids:
        for wanted in executor.net.slices(subnet_id):
            users.setdefault(wanted.key, []).append(subnet_id)

    def candidate(wanted: CudaSlice) -> Candidate:
        copy_s = wanted.num_bytes / rate
        saved_s = dict.fromkeys(users[wanted.key], copy_s)
        return Candidate(wanted.key, wanted.key.layer, wanted.num_bytes, copy_s, saved_s)

    return Savings(candidate(wanted) for wanted in slices.values())


def _copy_rate(bench: GpuBench) -> float:
    """Bytes per second of copies to the device."""
    source = bench.accelerator.pinned((8 * 2**20,), torch.uint8)
    into = torch.empty_like(source, device=bench.device, pin_memory=False)
    samples_s = bench.interleaved({"copy": lambda: bench.accelerator.copy(into, source)}, rounds=10)
    return source.nbytes / float(np.median(samples_s["copy"]))


def profile(bench: GpuBench) -> None:
    """Measure a latency profile of the six subnets through their graphs, and write it."""
    archs = six(bench.settings.six_family)
    checkpoint = bench.checkpoint(bench.settings.six_family, tuple(archs.values()))
    executor = bench.executor(checkpoint)
    measured = measure_profile(
        executor,
        checkpoint,
        batch_sizes=bench.settings.batch_sizes,
        repeats=bench.settings.rounds,
        name=f"SUSHI's six subnets of {bench.settings.six_family}, random weights",
    )
    device = measured.device.lower().replace(" ", "_").replace("/", "_")
    path = bench.profiles / f"{bench.settings.six_family}_six_{device}_bf16.json"
    measured.save(path)
    smallest, largest = measured.subnets[0], measured.subnets[-1]
    for name, subnet in (("smallest", smallest), ("largest", largest)):
        for size, latency_s in zip(measured.batch_sizes, subnet.latency_s["p50"], strict=True):
            detail = f"host to host, {path.name}; {measured.source}"
            bench.record(f"profile/{name}/b{size}", latency_s * 1e3, "ms", detail)
    executor.close()


def _phases(ids: Sequence[str], length: int, rng: np.random.Generator) -> list[str]:
    """Phases of half the stream's sixth; four of five batches are of one subnet."""
    stream: list[str] = []
    while len(stream) < length:
        main = ids[int(rng.integers(len(ids)))]
        for _ in range(max(1, length // 12)):
            stream.append(main if rng.random() < 0.8 else ids[int(rng.integers(len(ids)))])
    return stream[:length]


def _run(executor: CudaExecutor, subnet_id: str, inputs: np.ndarray) -> Callable[[], object]:
    return lambda: executor.run(subnet_id, inputs)
