"""How one convolution site is computed on a device: weight given per call, norm outside or folded.

The weight comes with every call, because it may lie in a resident slice or in a staging buffer that
was filled a moment ago. Where it is resident, `functools.partial` has fixed it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F

from subnetact.cuda.cuda_slice import is_matrix
from subnetact.cuda.fused_sites import FusedSites
from subnetact.cuda.pointwise import ACTIVATIONS, Pointwise
from subnetact.norms import Affine
from subnetact.program import ConvSite

# (weight, bias, x, other or None) -> output; all channels-last.
SiteKernel = Callable[
    [torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None], torch.Tensor
]


def site_kernel(
    site: ConvSite, norm: Affine | None, choices: FusedSites | None, pointwise: Pointwise
) -> SiteKernel:
    """Return the computation of a site; `norm` (on the device) is None where it is folded in.

    With `choices`, convolution, bias, addition and ReLU are one kernel where that was chosen.
    """
    finish = ACTIVATIONS[site.act]
    geometry = site.geometry

    def compute(
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        x: torch.Tensor,
        other: torch.Tensor | None = None,
    ) -> torch.Tensor:
        y = F.conv2d(
            x, weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups
        )
        if norm is not None:
            return pointwise(y, norm, other, site.act)
        return finish(y if other is None else y.add_(other))

    can_fuse = norm is None and site.act == "relu" and geometry.groups == 1
    return _fused(site, compute, choices) if can_fuse and choices is not None else compute


def _fused(site: ConvSite, plain: SiteKernel, choices: FusedSites) -> SiteKernel:
    geometry = site.geometry

    def compute(
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        x: torch.Tensor,
        other: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if bias is None:
            return plain(weight, bias, x, other)
        in_parts = partial(plain, weight, bias, x, other)
        return choices.run(geometry, in_parts, weight, bias, x, other)

    return compute


def matrix_kernel(site: ConvSite, norm: Affine | None, pointwise: Pointwise) -> SiteKernel:
    """Return the computation of a 1x1 convolution as a product with a matrix (O, I) of longer rows.

    Libraries of matrices take the length of a row beside its width, so no weight is copied. The
    product adds the bias, and applies a ReLU that follows at once.
    """
    finish, stride = ACTIVATIONS[site.act], site.geometry.stride
    ends_in_relu = norm is None and site.act == "relu" and not site.adds

    def compute(
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        x: torch.Tensor,
        other: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if stride != (1, 1):
            x = x[:, :, :: stride[0], :: stride[1]]
        by_row = x.permute(0, 2, 3, 1)  # (B, H, W, I): rows as they lie, where x is channels-last
        rows = by_row.reshape(-1, by_row.shape[-1])
        if ends_in_relu and bias is not None:
            y = torch.ops.aten._addmm_activation(bias, rows, weight.t())
            return y.view(*by_row.shape[:-1], len(weight)).permute(0, 3, 1, 2)
        y = F.linear(rows, weight, bias)
        y = y.view(*by_row.shape[:-1], len(weight)).permute(0, 3, 1, 2)
        if norm is not None:
            return pointwise(y, norm, other, site.act)
        return finish(y if other is None else y.add_(other))

    return compute


def num_launches(
    site: ConvSite, packing: str, *, is_fused: bool = False, is_joined: bool = False
) -> int:
    """Return how many kernels a site is on CUDA, by the calls that it makes.

    `is_fused` where cuDNN takes bias, addition and ReLU into a convolution whose norm is folded in,
    `is_joined` where one kernel takes a norm that is not, and all that follows it.
    """
    is_folded = packing == "folded" and site.norm is not None
    is_alone = site.norm is None or is_folded
    parts = (site.norm is not None and not is_folded) + site.adds + (site.act is not None)
    if is_joined and not is_alone:
        parts = 1
    if packing == "one_copy" and is_matrix(site):
        return 1 + parts - (site.act == "relu" and parts == 1 and site.has_bias)
    if is_fused and is_alone and site.act == "relu" and site.geometry.groups == 1:
        return 1
    return 1 + (is_folded or site.has_bias) + parts  # cuDNN's convolution adds no bias by itself
