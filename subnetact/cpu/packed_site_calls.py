"""How one convolution site is computed: on views, with a shared packed weight, or folded.

All three give the same result; they differ in cost and in what must be resident. `views` is the
plain version. Each function returns a call of (x) or, where the site adds, of (x, other).

A shared slice serves every subnet, so it cannot hold their scales. But ReLU commutes with a
positive factor: relu(s * conv + b) = s * relu(conv + b / s). So bias and ReLU go into the
convolution's kernel, and one multiplication in place is left (measured: 4 to 6 times faster than
batch_norm and relu). A scale is the affine weight, which all subnets share, over a deviation; so
its sign is shared too, and is packed into the slice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

from subnetact.cache import ResidentSlice
from subnetact.cpu.packing import can_fuse, fused_add_call, fused_call, pack, packed_bytes
from subnetact.cpu.resident_weights import widened
from subnetact.norms import Affine
from subnetact.program import IN_PLACE, ConvSite, SiteCall

_SMALLEST_FACTOR = 1e-30  # below it a shift over it may be too large for float32


class SiteWeights(NamedTuple):
    """What a site reads: views of the supernet's weight and bias, and its subnet's folded norm.

    `weight` may be float16 (`resident_weights.py`).
    `gamma` is the norm's affine weight (C,), which all subnets share.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    norm: Affine | None
    gamma: torch.Tensor | None


def pack_shared(site: ConvSite, weights: SiteWeights) -> ResidentSlice:
    """Pack the slice, times the sign of its norm's scale, for every subnet that uses it."""
    weight = widened(weights.weight)
    if weights.gamma is not None and bool((weights.gamma <= 0).any()):
        weight = weight * weights.gamma.sign().view(-1, 1, 1, 1)  # (O, I, k, k)
    return _resident(pack(weight, site.geometry), None)


def pack_folded(site: ConvSite, weights: SiteWeights) -> ResidentSlice:
    """Pack the slice with this subnet's norm folded in: W * scale, and a bias."""
    assert weights.norm is not None, "without a norm there is nothing to fold"
    scale, shift = weights.norm
    bias = shift if weights.bias is None else torch.addcmul(shift, weights.bias, scale)
    folded = widened(weights.weight) * scale.view(-1, 1, 1, 1)  # (O, I, k, k)
    return _resident(pack(folded, site.geometry), bias.clone())


def views_call(site: ConvSite, weights: SiteWeights) -> SiteCall:
    """Return the plain computation: convolution on a view, norm, addition, activation."""
    weight, bias = weights.weight, weights.bias
    g = site.geometry

    def convolve(x: torch.Tensor) -> torch.Tensor:
        w = widened(weight)
        return F.conv2d(x, w, bias, g.stride, g.padding, g.dilation, g.groups)

    return _then_norm(site, weights.norm, convolve)


def shared_call(site: ConvSite, weights: SiteWeights, packed: ResidentSlice) -> SiteCall:
    """Return the computation with an unfolded packed weight."""
    if weights.norm is None:
        return _fused(site, packed.weight, weights.bias)
    assert weights.gamma is not None, "a norm that is packed as shared has its affine weight"
    sign = weights.gamma.sign()  # it is in the packed weight
    scale, shift = weights.norm
    bias = None if weights.bias is None else weights.bias * sign
    factor = torch.where(sign == 0, torch.ones_like(scale), scale.abs())
    if bool((factor < _SMALLEST_FACTOR).any()):
        convolve = fused_call(packed.weight, bias, site.geometry, None)
        return _then_norm(site, Affine(scale.abs(), shift), convolve)
    before = shift / factor if bias is None else shift / factor + bias
    return _rescaled(site, packed.weight, before, factor.view(1, -1, 1, 1))


def folded_call(site: ConvSite, packed: ResidentSlice) -> SiteCall:
    """Return the computation with the norm inside the packed weight: one kernel."""
    return _fused(site, packed.weight, packed.bias)


def _resident(packed: torch.Tensor, bias: torch.Tensor | None) -> ResidentSlice:
    return ResidentSlice(packed, bias, packed_bytes(packed) + (0 if bias is None else bias.nbytes))


def _fused(site: ConvSite, weight: torch.Tensor, bias: torch.Tensor | None) -> SiteCall:
    finish = IN_PLACE[site.act]
    fused_act = site.act if can_fuse(site.act) else None
    if site.adds:
        call = fused_add_call(weight, bias, site.geometry, fused_act, site.overwrites)
        return call if fused_act == site.act else lambda x, other: finish(call(x, other))
    plain = fused_call(weight, bias, site.geometry, fused_act)
    return plain if fused_act == site.act else lambda x: finish(plain(x))


def _then_norm(
    site: ConvSite, norm: Affine | None, convolve: Callable[[torch.Tensor], torch.Tensor]
) -> SiteCall:
    """Return `convolve`, then norm, addition and activation, the last two in place."""
    finish = IN_PLACE[site.act]
    if norm is None:
        normalise: Callable[[torch.Tensor], torch.Tensor] = IN_PLACE[None]
    else:
        normalise = _normalisation(norm)
    if site.adds:
        return lambda x, other: finish(normalise(convolve(x)).add_(other))
    return lambda x: finish(normalise(convolve(x)))


def _rescaled(
    site: ConvSite, weight: torch.Tensor, bias: torch.Tensor, factor: torch.Tensor
) -> SiteCall:
    """Return factor * (convolution + bias), then addition and activation; factor > 0, (1, C, 1, 1).

    A ReLU with nothing to add before it is computed in the convolution's kernel.
    """
    finish = IN_PLACE[site.act]
    if site.adds:
        plain = fused_call(weight, bias, site.geometry, None)

        def add(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            y = plain(x)
            return finish(torch.addcmul(other, y, factor, out=y))

        return add
    if site.act == "relu":
        rectified = fused_call(weight, bias, site.geometry, "relu")
        return lambda x: rectified(x).mul_(factor)
    plain = fused_call(weight, bias, site.geometry, None)
    return lambda x: finish(plain(x).mul_(factor))


def _normalisation(norm: Affine) -> Callable[[torch.Tensor], torch.Tensor]:
    """y * scale + shift, in place; `y` must be fresh."""
    scale, shift = (vector.view(1, -1, 1, 1) for vector in norm)
    return lambda y: torch.addcmul(shift, y, scale, out=y)
