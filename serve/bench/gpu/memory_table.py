"""Part `memory` of `serve.bench.gpu`: SuperServe's table of memory, on this device.

It serves 500 subnets from 200 MB where six extracted networks take 531 (NSDI'25, Figure 5a). Here
subnets are added to one supernet one by one, and what the device's allocator holds is read at six,
20 and 500, and for six networks that were extracted. Graphs and libraries' workspaces apart:
nothing runs in between. Beside it stands what the supernet says it holds, and what part `bytes`
counts from shapes; the three must agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from serve.bench.actuation.random_supernet import statistics_of
from serve.bench.gpu.cases import GpuBench, random_archs, six, static_net
from subnetact.cache import SLICE_PACKINGS, SubgraphCache
from subnetact.cuda.cuda_supernet import CudaSupernet
from subnetact.cuda.device_bytes import DeviceBytes, SupernetShapes
from subnetact.norms import FoldedNorms
from supernet import Arch, Checkpoint, SupernetDefinition

_DTYPE = torch.bfloat16
_SERVED = "one_copy"  # the packing that is for hundreds of subnets
_LEAVES = 0.6  # of the time that is left, to the parts that follow: each subnet is traced
_NOT_COUNTED = "a CPU counts no bytes of a device"
_PUBLISHED = "SuperServe prints 200 MB for 500 subnets over 531 MB for six extracted, in fp32"

_Served = tuple[Arch, Mapping[str, torch.Tensor]]
"""A subnet and its norm statistics."""


class _Held(NamedTuple):
    """Bytes by the allocator (None: it counts none), by the supernet, and counted from shapes."""

    allocated: int | None
    held: int
    counted: int


def memory(bench: GpuBench) -> None:
    """Record the bytes of six subnets in every packing, of many in one, and of six networks."""
    family = bench.settings.six_family
    archs = list(six(family).values())
    checkpoint = bench.checkpoint(family, archs)
    shapes = SupernetShapes(checkpoint.definition)
    n = len(archs)
    extracted = _extracted(bench, f"memory/{family}/six/n{n}/extracted", checkpoint, archs)
    served = [(arch, checkpoint.norm_statistics[arch.subnet_id]) for arch in archs]
    for packing in SLICE_PACKINGS:
        grown = _grown(bench, checkpoint, shapes, packing, served, (n,))
        _record(bench, f"memory/{family}/six/n{n}/{packing}", grown.get(n))
    counts = bench.settings.random_counts
    drawn = _random(checkpoint.definition, max(counts))
    grown = _grown(bench, checkpoint, shapes, _SERVED, drawn, counts)
    for count in counts:
        figure, held = f"memory/{family}/random/n{count}", grown.get(count)
        _record(bench, f"{figure}/{_SERVED}", held)
        allocated = None if held is None else held.allocated
        _over_extracted(bench, f"{figure}/over_six_extracted", allocated, extracted)


def _extracted(
    bench: GpuBench, figure: str, checkpoint: Checkpoint, archs: Sequence[Arch]
) -> int | None:
    """Put networks of their own onto the device, side by side; return the bytes they take."""
    before = bench.allocated_bytes()
    networks = [static_net(checkpoint, arch, bench.device, _DTYPE) for arch in archs]
    after = bench.allocated_bytes()
    if before is None or after is None:
        bench.absent(figure, "MB", f"{_NOT_COUNTED}; part bytes counts shapes")
        return None
    detail = f"bf16; {len(networks)} networks by themselves, as the allocator counts"
    bench.record(figure, (after - before) / 1e6, "MB", detail)
    return after - before


def _grown(
    bench: GpuBench,
    checkpoint: Checkpoint,
    shapes: SupernetShapes,
    packing: str,
    served: Iterable[_Served],
    counts: Sequence[int],
) -> dict[int, _Held]:
    """Add subnets to a supernet on the device; return what it holds at those of `counts` reached.

    When two fifths of the time that was left are gone, no more are added.
    """
    norm_dtype = torch.float16 if packing == _SERVED else torch.float32  # as `CudaExecutor` has it
    before, least_left_s = bench.allocated_bytes(), _LEAVES * bench.left_s
    cache = SubgraphCache(None)
    net = CudaSupernet(
        checkpoint.definition,
        checkpoint.state,
        FoldedNorms(checkpoint.definition, checkpoint.state, norm_dtype),
        cache,
        bench.accelerator,
        packing=packing,
        dtype=_DTYPE,
        keep_host_slices=False,
    )
    counted = DeviceBytes(shapes, packing, _DTYPE, norm_dtype)
    grown: dict[int, _Held] = {}
    for number, (arch, statistics) in enumerate(served, start=1):
        slices = net.slices(net.register(arch, statistics))
        if net.load(slices) < len(slices):  # what is not there takes no memory
            raise RuntimeError(f"subnet {number} in {packing}: no memory for all of its slices")
        counted.add(shapes.of(arch))
        if number in counts:
            after = bench.allocated_bytes()
            allocated = None if before is None or after is None else after - before
            held = cache.held_bytes + net.fixed_bytes
            grown[number] = _Held(allocated, held, counted.parts.total)
        if bench.left_s < least_left_s:
            break
    cache.clear()
    return grown


def _record(bench: GpuBench, figure: str, held: _Held | None) -> None:
    if held is None:
        bench.absent(figure, "MB", "the time for it ended before")
        return
    detail = (
        f"bf16, every slice resident, graphs apart: {held.held / 1e6:.1f} MB by the supernet's own "
        f"account, {held.counted / 1e6:.1f} counted from shapes"
    )
    if held.allocated is None:
        bench.absent(figure, "MB", f"{_NOT_COUNTED}; {detail}")
        bench.absent(f"{figure}_allocated_over_counted", "ratio", _NOT_COUNTED)
    else:
        bench.record(figure, held.allocated / 1e6, "MB", f"as the allocator counts; {detail}")
        over = held.allocated / held.counted
        bench.record(f"{figure}_allocated_over_counted", over, "ratio", detail)
    bench.record(f"{figure}_held_over_counted", held.held / held.counted, "ratio", detail)


def _over_extracted(
    bench: GpuBench, figure: str, allocated: int | None, extracted: int | None
) -> None:
    if allocated is None or extracted is None:
        bench.absent(figure, "ratio", f"nothing to compare; {_PUBLISHED}")
        return
    bench.record(figure, allocated / extracted, "ratio", f"bf16; {_PUBLISHED}")


def _random(definition: SupernetDefinition, count: int) -> Iterable[_Served]:
    """Random subnets with random statistics: bytes do not depend on values."""
    rng = np.random.default_rng(0)
    for arch in random_archs(definition, count):
        yield arch, statistics_of(definition, arch, rng)
