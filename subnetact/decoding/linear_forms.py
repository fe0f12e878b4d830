"""The forms in which linear layers read their weights: views, packed, half, or int8.

One-bit weights are no form of these but other weights (`subnetact/decoding/one_bit_linear.py`).

| form | what | memory |
|---|---|---|
| views | leading slices of the one set of weights | none |
| packed | oneDNN's own blocked layout, float32 | a copy per width |
| half | FBGEMM's blocked layout, weights in float16, all else in float32 | half a copy per width |
| int8 | a byte per weight, one scale per row; activations in 16 bit fixed point | a quarter copy |

Layers that read the same input (gate and up, query and key and value) are one call where they are
copied anyway. The operators behind the copies are not public: each is tried with values before it
is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch.nn import functional as F

LinearForm = Callable[[torch.Tensor], torch.Tensor]
JointForm = Callable[[torch.Tensor], Sequence[torch.Tensor]]
FORMS = ("views", "packed", "half", "int8")
_FEW_TOKENS = 8  # for which the packed layout is chosen; it computes any number


class Dense(NamedTuple):
    """A weight (out, in) and its bias (out,), where it has one."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None


class ViewLinear:
    """x W^T + b with W as it lies in the supernet's weights; (T, in) to (T, out)."""

    def __init__(self, layer: Dense):
        self._weight, self._bias = layer

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weight, self._bias)


class PackedLinear:
    """x W^T + b with W in oneDNN's blocked layout; (T, in) to (T, out)."""

    def __init__(self, layer: Dense):
        weight, self._bias = layer
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _FEW_TOKENS)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")


class HalfLinear:
    """x W^T + b with W rounded to float16; x and sums stay float32; (T, in) to (T, out)."""

    def __init__(self, layer: Dense):
        weight, bias = layer
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x, self._packed)


class Int8Linear:
    """x W^T + b with W rounded to int8 per row; (T, in) to (T, out).

    The processor multiplies bytes with bytes (VNNI) four at a time. One byte would be too few for
    activations, so each token's are rounded to 16 bit by its own largest and go in as two bytes,
    as two rows. Sums are integers: what a token gets does not depend on its company.
    """

    def __init__(self, layer: Dense):
        weight, self._bias = layer
        self._scale = weight.abs().amax(1).clamp_min(1e-12) / 127.0
        rounded = (weight / self._scale[:, None]).round_().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self._zero = torch.zeros(len(weight), dtype=torch.int8)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows, scale = _two_bytes(x)
        product = torch.ops.onednn.qlinear_pointwise(
            rows, 1.0, _MIDDLE, self._weight, self._scale, self._zero, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        high, low = product.chunk(2)
        product = torch.add(low, high, alpha=256.0).mul_(scale)
        return product if self._bias is None else product.add_(self._bias)


_MIDDLE = 128  # the byte that stands for 0
_LARGEST = 127.0 * 256.0


def _two_bytes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, in) to bytes (2 T, in), the high ones before the low ones, and scales (T, 1).

    x = scale * (256 * (high - 128) + (low - 128)), rounded.
    """
    scale = x.abs().amax(-1, keepdim=True).clamp_min_(1e-30).div_(_LARGEST)
    fixed = (x / scale).round_()
    high = fixed.add(128.0).mul_(1.0 / 256.0).floor_()
    low = torch.sub(fixed, high, alpha=256.0)
    return torch.cat((high, low)).add_(float(_MIDDLE)).to(torch.uint8), scale


_CLASSES: dict[str, Callable[[Dense], LinearForm]] = {
    "views": ViewLinear,
    "packed": PackedLinear,
    "half": HalfLinear,
    "int8": Int8Linear,
}


def make_linear(form: str, weight: torch.Tensor, bias: torch.Tensor | None = None) -> LinearForm:
    """Return a layer in a form. Raises ValueError for one that is not known or not to be had."""
    if form not in FORMS:
        raise ValueError(f"packing is {form!r}, allowed {', '.join(FORMS)}")
    if not has_form(form):
        raise ValueError(f"packing {form} is not to be had with this build of torch; use views")
    return _CLASSES[form](Dense(weight, bias))


def make_stacked(form: str, layers: Sequence[Dense]) -> LinearForm:
    """Return layers of one input as one call, (T, in) to their outputs side by side.

    Biases: all of them or none. Raises as `make_linear`.
    """
    if form == "views":
        separate = [make_linear(form, *layer) for layer in layers]
        return lambda x: torch.cat([layer(x) for layer in separate], -1)
    biases = [layer.bias for layer in layers if layer.bias is not None]
    weight = torch.cat([layer.weight for layer in layers])
    return make_linear(form, weight, torch.cat(biases) if biases else None)


def make_joint(form: str, layers: Sequence[Dense]) -> JointForm:
    """Return layers of one input as one call, (T, in) to a (T, out) each. See `make_stacked`."""
    if form == "views":
        separate = [make_linear(form, *layer) for layer in layers]
        return lambda x: [layer(x) for layer in separate]
    sizes = [len(layer.weight) for layer in layers]
    whole = make_stacked(form, layers)
    return lambda x: whole(x).split(sizes, -1)


@cache
def has_form(form: str) -> bool:
    """Whether a form computes here what it should, at one token and at several."""
    if form == "int8" and not torch.cpu._is_vnni_supported():
        return False  # without it bytes are multiplied more slowly than floats, and may saturate
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 96, generator=generator)
    bias = torch.randn(48, generator=generator)
    tolerance = {"int8": 0.05, "half": 2e-3}.get(form, 1e-4)
    try:
        with torch.inference_mode():
            layer = _CLASSES[form](Dense(weight[:, :64], bias))
            for tokens in (1, 5):
                x = torch.randn(tokens, 64, generator=generator)
                expected = F.linear(x, weight[:, :64], bias)
                if (layer(x) - expected).norm() > tolerance * expected.norm():
                    return False
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    return True
