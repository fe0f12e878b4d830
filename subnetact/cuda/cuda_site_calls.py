"""How one convolution site is computed on a device: weight given per call, norm outside or folded.

The weight comes with every call, because it may lie in a resident slice or in a staging buffer that
was filled a moment ago. Where it is resident, `functools.partial` has fixed it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F

from subnetact.cuda.fused_sites import FusedSites
from subnetact.norms import Affine
from subnetact.program import ConvSite

# (weight, bias, x, other or None) -> output; all channels-last.
SiteKernel = Callable[
    [torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None], torch.Tensor
]

_FINISH: dict[str | None, Callable[[torch.Tensor], torch.Tensor]] = {
    None: lambda y: y,
    "relu": torch.relu_,
    "relu6": lambda y: F.hardtanh_(y, 0.0, 6.0),
    "hard_swish": lambda y: F.hardswish(y, inplace=True),
    "hard_sigmoid": lambda y: F.hardsigmoid(y, inplace=True),
}


def site_kernel(site: ConvSite, norm: Affine | None, choices: FusedSites | None) -> SiteKernel:
    """Return the computation of a site; `norm` (on the device) is None where it is folded in.

    With `choices`, convolution, bias, addition and ReLU are one kernel where that was chosen.
    """
    finish = _FINISH[site.act]
    geometry = site.geometry
    normalise = _normalisation(norm)

    def compute(
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        x: torch.Tensor,
        other: torch.Tensor | None = None,
    ) -> torch.Tensor:
        y = F.conv2d(
            x, weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups
        )
        y = normalise(y)
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


def _normalisation(norm: Affine | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """y * scale + shift in float32, as BatchNorm over mean 0 and variance 1."""
    if norm is None:
        return lambda y: y
    scale, shift = norm
    mean, var = torch.zeros_like(shift), torch.ones_like(scale)
    return lambda y: F.batch_norm(y, mean, var, scale, shift, False, 0.0, 0.0)
