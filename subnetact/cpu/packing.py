"""Weights of convolutions packed for oneDNN, and the fused convolutions that read them.

oneDNN computes on blocked layouts. A plain weight is laid out anew on every call; a packed one is
not, and it takes a bias, an activation and an addition into the same kernel. The layout depends on
the layer's real input size and on the number of threads: one made for others is laid out again on
every call (measured: OFA-ResNet50 at batch 1 took 1.5 times its eager time with slices packed for
two threads and run on one). So slices are packed by the thread count that runs them, for batch 1:
larger batches have the same layout on one thread, and pay little for another one on two.

`torch.ops.mkldnn` is private, so what is needed of it is looked for (`is_available`), and whoever
asks falls back to plain views where it is missing (macOS, ARM, other builds). Tested with torch
2.15.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any

import torch

from subnetact.conv_geometry import ConvGeometry

_NEEDED = ("_reorder_convolution_weight", "_convolution_pointwise", "_nbytes")
# Activations that oneDNN computes in the same kernel: (attribute, scalars).
_FUSED: dict[str | None, tuple[str, list[float]]] = {
    None: ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
    "hard_swish": ("hardswish", []),
}


@lru_cache(maxsize=1)
def is_available() -> bool:
    """Whether this build of torch, on this machine, packs for oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in _NEEDED):
        return False
    if not hasattr(torch.ops.mkldnn._convolution_pointwise, "binary"):
        return False
    one = ConvGeometry((8, 8, 1, 1), (8, 4, 4), (1, 1), (0, 0), (1, 1), 1)
    try:  # a probe: the operators may exist and refuse (no AVX2, no oneDNN kernels)
        packed = pack(torch.ones(8, 8, 1, 1), one)
        y = run_fused(torch.ones(1, 8, 4, 4), packed, None, one, "relu")
    except (RuntimeError, NotImplementedError):
        return False
    return bool((y == 8).all())


def can_fuse(act: str | None) -> bool:
    """Whether an activation can be computed in the convolution's kernel."""
    return act in _FUSED


def pack(weight: torch.Tensor, geometry: ConvGeometry) -> torch.Tensor:
    """Return `weight` in oneDNN's layout for `geometry`, an opaque tensor. A copy.

    Raises RuntimeError when memory runs out.
    """
    return torch.ops.mkldnn._reorder_convolution_weight(
        weight.contiguous(),
        list(geometry.padding),
        list(geometry.stride),
        list(geometry.dilation),
        geometry.groups,
        [1, *geometry.input_shape],
    )


def packed_bytes(packed: torch.Tensor) -> int:
    """Bytes that a packed weight holds (channels are rounded up to the layout's blocks)."""
    return int(torch.ops.mkldnn._nbytes(packed))


def layout(geometry: ConvGeometry) -> tuple[Hashable, int]:
    """Return (name of the layout, bytes) that packing for `geometry` gives in this thread.

    Two geometries with one name can share a packed weight, so subnets of different resolution
    can. Where the layout cannot be read, geometry and thread count are its name.
    """
    return _layout(geometry, torch.get_num_threads())


@lru_cache(maxsize=65_536)
def _layout(geometry: ConvGeometry, threads: int) -> tuple[Hashable, int]:
    packed = pack(torch.empty(geometry.weight_shape), geometry)
    if not hasattr(torch.ops.mkldnn, "_get_mkldnn_serialized_md"):
        return (geometry, threads), packed_bytes(packed)
    described = torch.ops.mkldnn._get_mkldnn_serialized_md(packed)
    return hash(bytes(described.tolist())), packed_bytes(packed)


def run_fused(
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: ConvGeometry,
    act: str | None = None,
) -> torch.Tensor:
    """Convolution with a packed weight, bias and activation in one kernel; (B, C, H, W)."""
    return fused_call(packed, bias, geometry, act)(x)


def fused_call(
    packed: torch.Tensor, bias: torch.Tensor | None, geometry: ConvGeometry, act: str | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return `run_fused` with everything but the input fixed: no look-up is left on the way."""
    run: Any = torch.ops.mkldnn._convolution_pointwise.default
    attribute, scalars = _FUSED[act]
    shape = (list(geometry.padding), list(geometry.stride), list(geometry.dilation))

    def call(x: torch.Tensor) -> torch.Tensor:
        return run(x, packed, bias, *shape, geometry.groups, attribute, scalars, "")

    return call


def fused_add_call(
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: ConvGeometry,
    act: str | None,
    in_place: bool,
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return convolution plus a second tensor, then the activation, in one kernel.

    `in_place` writes over the second tensor, which nobody may need any more.
    """
    ops = torch.ops.mkldnn
    attribute, scalars = _FUSED[act]
    unary = None if act is None else attribute
    shape = (list(geometry.padding), list(geometry.stride), list(geometry.dilation))
    groups = geometry.groups
    if in_place:
        write: Any = ops._convolution_pointwise_.binary

        def call_over(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return write(other, x, packed, bias, *shape, groups, "add", 1.0, unary, scalars, "")

        return call_over
    run: Any = ops._convolution_pointwise.binary

    def call(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return run(x, other, packed, bias, *shape, groups, "add", 1.0, unary, scalars, "")

    return call
