"""Part `bytes` of `serve.bench.gpu`: what 6, 20 and 500 subnets take on a device, by packing.

Counted from shapes, so it needs no device and says the same on all. Graphs come on top.
"""

from __future__ import annotations

import torch

from serve.bench.gpu.cases import GpuBench, random_archs, six
from subnetact.cuda.cuda_site_calls import num_launches
from subnetact.cuda.cuda_supernet import supernet_bytes
from subnetact.cuda.device_bytes import DeviceBytes, SubnetShapes, SupernetShapes
from supernet import Arch, define_supernet

_FAMILY = "ofa_resnet50"
_COUNTS = (20, 500)
_DTYPE = torch.bfloat16
_PACKINGS = {
    "folded": ("folded", torch.float32),
    "shared": ("shared", torch.float32),
    "one_copy_norms_float32": ("one_copy", torch.float32),
    "one_copy_norms_float16": ("one_copy", torch.float16),
}


def device_bytes(bench: GpuBench) -> None:
    """Count bytes of SUSHI's six subnets, and of random ones; launches of the largest subnet."""
    definition = define_supernet(_FAMILY)
    shapes = SupernetShapes(definition)
    whole = supernet_bytes(definition, _DTYPE)
    bench.record(f"bytes/{_FAMILY}/supernet", whole / 1e6, "MB", "all parameters in bf16, once")
    _count(bench, "six", shapes, list(six(_FAMILY).values()), (6,))
    _count(bench, "random", shapes, random_archs(definition, max(_COUNTS)), _COUNTS)
    _launches(bench, shapes.of(definition.space.largest))


def _count(
    bench: GpuBench, name: str, supernet: SupernetShapes, archs: list[Arch], counts: tuple[int, ...]
) -> None:
    counted = {
        label: DeviceBytes(supernet, packing, _DTYPE, norm_dtype)
        for label, (packing, norm_dtype) in _PACKINGS.items()
    }
    extracted = 0
    for number, arch in enumerate(archs, start=1):
        subnet = supernet.of(arch)
        extracted += subnet.num_bytes(_DTYPE)
        for each in counted.values():
            each.add(subnet)
        if number in counts:
            figure = f"bytes/{_FAMILY}/{name}/n{number}"
            detail = "networks of their own, side by side"
            bench.record(f"{figure}/extracted", extracted / 1e6, "MB", detail)
            for label, each in counted.items():
                parts = each.parts
                detail = (
                    f"bf16: slices {parts.slices / 1e6:.1f}, whole {parts.whole / 1e6:.1f}, "
                    f"norms {parts.norms / 1e6:.1f} MB; every slice resident, graphs apart"
                )
                bench.record(f"{figure}/{label}", parts.total / 1e6, "MB", detail)


def _launches(bench: GpuBench, subnet: SubnetShapes) -> None:
    """What a packing costs in kernels: a norm that is not folded in is one more per site."""
    forms = {
        "folded": ("folded", False, False),
        "folded_fused": ("folded", True, False),
        "shared": ("shared", False, False),
        "one_copy": ("one_copy", False, False),
        "one_copy_joined": ("one_copy", False, True),
    }
    for label, (packing, is_fused, is_joined) in forms.items():
        launches = sum(
            num_launches(site, packing, is_fused=is_fused, is_joined=is_joined)
            for site in subnet.sites
        )
        detail = f"kernels of the largest subnet's {len(subnet.sites)} sites, by their calls"
        bench.record(f"bytes/{_FAMILY}/max/launches/{label}", launches, "count", detail)
