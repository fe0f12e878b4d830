"""Part `compiled` of `serve.bench.gpu`: our captured graph against `torch.compile`, on equal terms.

Both have the same subnet, dtype, batch and layout, are warm, take uint8 samples in host memory and
leave float32 logits there, by way of page-locked memory; that is the ratio that counts. Beside it
stands the work on the device alone, where a compiled call still checks its guards and, with CUDA
graphs, copies its input. `default` has Inductor's kernels, `reduce-overhead` captures them too;
what doesn't work here, or was silently not captured, is a row that says why.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from serve.bench.gpu.cases import GpuBench, brief, random_samples, ratio, sizes, static_call
from subnetact.cuda.cuda_executor import CudaExecutor
from supernet import Arch, Checkpoint, define_supernet

Call = Callable[[torch.Tensor], torch.Tensor]
_DTYPE = torch.bfloat16
_WARM_CALLS = 5  # CUDA graphs of torch.compile are recorded in the second, replayed from the third
_TOLERANCE = 0.05  # of the largest logit: both round to 16 bit, each in its own places
_CAPTURING = "reduce-overhead"


class _Compiled(NamedTuple):
    """A compiled call, warm, and what its first call took."""

    call: Call
    compile_s: float


class NotCompiledError(Exception):
    """torch.compile has no such thing here; the message says why."""


def compiled(bench: GpuBench) -> None:
    """Compare the middle, largest and smallest subnet of each network, batch by batch."""
    import torch._dynamo

    for batch_size in bench.settings.compiled_batch_sizes:
        for net_name, variant in bench.settings.nets.items():
            archs = sizes(define_supernet(variant))
            checkpoint = bench.checkpoint(variant, tuple(archs.values()))
            torch._dynamo.reset()  # while no graph of ours lives: it destroys captured ones
            executor = bench.executor(checkpoint, batch_sizes=(batch_size,))
            executor.warm_up()
            for size in ("mid", "max", "min"):
                if bench.left_s < 0:
                    return
                figure = f"compiled/{net_name}/{size}/b{batch_size}"
                _compare(bench, figure, checkpoint, executor, archs[size])
            executor.close()


def _compare(
    bench: GpuBench, figure: str, checkpoint: Checkpoint, executor: CudaExecutor, arch: Arch
) -> None:
    inputs = random_samples(checkpoint, executor.max_batch_size)
    lease = executor.graphs.lease(arch.subnet_id, len(inputs))
    if lease is None:
        raise RuntimeError(f"no graph of {arch.subnet_id}: {executor.graphs.status.refusals}")
    best_s: dict[str, float] = {}
    with lease:
        for mode in bench.settings.compile_modes:
            if bench.left_s < 0:
                return
            static = static_call(checkpoint, arch, bench.device, _DTYPE)
            samples = torch.from_numpy(inputs).to(bench.device)
            try:
                theirs = warm_compiled(bench, mode, static, samples)
            except NotCompiledError as error:
                bench.absent(f"{figure}/{mode}/replay_over_compiled", "ratio", str(error))
                continue
            _hold_equal(bench, f"{figure}/{mode}", theirs.call(samples), executor, arch, inputs)
            ends = _HostToHost(bench, theirs.call, inputs)
            samples_s = bench.interleaved(
                {
                    "ours": lambda: executor.run(arch.subnet_id, inputs),
                    "compiled": ends.run,
                    "replay_alone": lease.graph.replay,
                    "compiled_alone": lambda theirs=theirs, samples=samples: theirs.call(samples),
                }
            )
            _record(bench, f"{figure}/{mode}", samples_s, theirs.compile_s)
            best_s[mode] = ratio(samples_s, "ours", "compiled")
    if not best_s:
        bench.absent(f"{figure}/replay_over_best", "ratio", "nothing was compiled")
        return
    mode = max(best_s, key=lambda mode: best_s[mode])
    detail = f"host to host, over the faster of {', '.join(best_s)}: {mode}"
    bench.record(f"{figure}/replay_over_best", best_s[mode], "ratio", detail)


def _record(
    bench: GpuBench, figure: str, samples_s: dict[str, list[float]], compile_s: float
) -> None:
    detail = f"{brief(samples_s)}; torch.compile, {bench.settings.compile_backend}, dynamic=False"
    for name, one, other in (
        ("replay_over_compiled", "ours", "compiled"),
        ("replay_over_compiled_on_device", "replay_alone", "compiled_alone"),
    ):
        bench.record(f"{figure}/{name}", ratio(samples_s, one, other), "ratio", detail)
    bench.record(f"{figure}/host_to_host", 1e3 * median(samples_s["compiled"]), "ms", detail)
    bench.record(f"{figure}/compile_time", compile_s, "s", "once per subnet and batch size")


def warm_compiled(bench: GpuBench, mode: str, static: Call, samples: torch.Tensor) -> _Compiled:
    """Compile and warm up. Raises NotCompiledError."""
    from torch._dynamo.utils import counters

    if mode == _CAPTURING and bench.device != "cuda":
        raise NotCompiledError("CUDA graphs of torch.compile need a CUDA device")
    counters.clear()
    backend = bench.settings.compile_backend
    call = torch.compile(static, dynamic=False, backend=backend, mode=_mode(mode))
    start_s = time.perf_counter()
    try:
        with bench.accelerator.searching():  # as ours were, for what is left to libraries
            call(samples)
            bench.sync()
            compile_s = time.perf_counter() - start_s
            for _ in range(_WARM_CALLS):
                call(samples)
            bench.sync()
    except Exception as error:  # a compiler of others raises any; the row says which
        said = (str(error).splitlines() or [""])[0]
        raise NotCompiledError(f"{type(error).__name__}: {said}"[:300]) from error
    skipped = counters["inductor"]["cudagraph_skips"]
    if mode == _CAPTURING and skipped:
        raise NotCompiledError(f"torch.compile captured no CUDA graph, {skipped} were skipped")
    return _Compiled(call, compile_s)


def _mode(mode: str) -> str | None:
    return None if mode == "default" else mode


def _hold_equal(
    bench: GpuBench,
    figure: str,
    logits: torch.Tensor,
    executor: CudaExecutor,
    arch: Arch,
    inputs: np.ndarray,
) -> None:
    """Note it as a failure when the two do not compute the same."""
    theirs, ours = logits.cpu().numpy(), executor.run(arch.subnet_id, inputs)
    worst = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not worst <= _TOLERANCE:
        bench.failures.append(f"{figure}: {worst:.4g} above {_TOLERANCE:g} of the largest logit")


class _HostToHost:
    """A compiled call between page-locked rooms of the host, as our executor's input ring has."""

    def __init__(self, bench: GpuBench, call: Call, inputs: np.ndarray):
        self._bench, self._call = bench, call
        self._inputs = torch.from_numpy(inputs)
        accelerator = bench.accelerator
        self._host_input = accelerator.pinned(tuple(inputs.shape), torch.uint8)
        self._device_input = torch.empty_like(
            self._host_input, device=bench.device, pin_memory=False
        )
        logits = call(self._device_input.zero_())
        self._host_output = accelerator.pinned(tuple(logits.shape), torch.float32)

    def run(self) -> np.ndarray:
        """Return (B, classes) logits; waits for the device once."""
        accelerator = self._bench.accelerator
        self._host_input.copy_(self._inputs)
        accelerator.copy(self._device_input, self._host_input)
        accelerator.copy(self._host_output, self._call(self._device_input))
        accelerator.mark().wait()
        return self._host_output.numpy().copy()
