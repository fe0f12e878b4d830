"""Part `loading` of `serve.bench.gpu`: SuperServe's second table, actuation against loading.

It makes a subnet current in less than 1 ms, where loading an extracted network takes up to 40
(NSDI'25, Figure 5b). Loaded are the weights of an extracted subnet in bf16, which lie in host
memory: as a program that has them would (`pageable`: memory is taken on the device, tensor by
tensor), and as well as it can be done (`page_locked`: one copy of all, into memory that is there).
Actuation is choosing the captured graph of another subnet; on what follows see part `switching`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from serve.bench.gpu.cases import GpuBench, brief, six, static_net
from serve.bench.gpu.latency import record_actuations
from supernet import Arch, Checkpoint

_DTYPE = torch.bfloat16


def loading(bench: GpuBench) -> None:
    """Load each of six subnets in turn, and switch among them."""
    family = bench.settings.six_family
    archs = six(family)
    checkpoint = bench.checkpoint(family, tuple(archs.values()))
    executor = bench.executor(checkpoint, batch_sizes=(1,))
    executor.warm_up()
    taken_s = record_actuations(bench, f"loading/{family}/actuation", executor, "ms")
    executor.close()
    least_s = [
        _load(bench, f"loading/{family}/{name}", checkpoint, arch) for name, arch in archs.items()
    ]
    figure = f"loading/{family}/actuation_over_least_loading"
    if not taken_s:
        bench.absent(figure, "ratio", "nothing was actuated, see actuation_p99")
        return
    actuation_s = float(np.percentile(taken_s, 99))
    detail = (
        f"p99 {1e6 * actuation_s:.2f} us over the subnet that loads soonest from page-locked "
        f"memory, {1e3 * min(least_s):.3f} ms; SuperServe prints < 1 ms over up to 40"
    )
    bench.record(figure, actuation_s / min(least_s), "ratio", detail)


def _load(bench: GpuBench, figure: str, checkpoint: Checkpoint, arch: Arch) -> float:
    """Time both ways to load an extracted subnet; return the seconds of the better one."""
    net = static_net(checkpoint, arch, "cpu", _DTYPE)
    tensors = [t for t in net.state_dict().values() if t.is_floating_point()]
    flat = bench.accelerator.pinned((sum(t.numel() for t in tensors),), _DTYPE)
    flat.copy_(torch.cat([t.flatten() for t in tensors]))
    into = torch.empty(flat.shape, dtype=_DTYPE, device=bench.device)
    calls: dict[str, Callable[[], object]] = {
        "pageable": lambda: [t.to(bench.device, copy=True) for t in tensors],
        "page_locked": lambda: bench.accelerator.copy(into, flat),
    }
    samples_s = bench.interleaved(calls)
    for name, taken_s in samples_s.items():
        value_s = float(np.median(taken_s))
        detail = (
            f"{len(tensors)} tensors, {flat.nbytes / 1e6:.1f} MB in bf16, "
            f"{flat.nbytes / value_s / 1e9:.1f} GB/s; {brief(samples_s)}"
        )
        bench.record(f"{figure}/{name}", value_s * 1e3, "ms", detail)
    return float(np.median(samples_s["page_locked"]))
