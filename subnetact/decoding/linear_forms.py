"""The forms in which a linear layer reads its weight: a view, packed, or int8.

One-bit weights are no form of these but other weights (`subnetact/decoding/one_bit_linear.py`).

| form | what | memory |
|---|---|---|
| views | a leading slice of the one set of weights | none |
| packed | oneDNN's own blocked layout, which is faster at few tokens | a copy per width |
| int8 | a byte per weight, one scale per row; activations in bfloat16 | a quarter copy per width |

The operators behind the last two are not public: each is tried with values before it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch.nn import functional as F

LinearForm = Callable[[torch.Tensor], torch.Tensor]
FORMS = ("views", "packed", "int8")
_INT8_BLOCK = 32  # inputs that torch's kernel reads at once; it checks nothing
_FEW_TOKENS = 8  # for which the packed layout is chosen; it computes any number


class ViewLinear:
    """x W^T + b with W as it lies in the supernet's weights; (T, in) to (T, out)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None):
        self._weight, self._bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weight, self._bias)


class PackedLinear:
    """x W^T + b with W in oneDNN's blocked layout; (T, in) to (T, out)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None):
        self._bias = bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _FEW_TOKENS)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")


class Int8Linear:
    """x W^T + b with W rounded to int8 per row and x to bfloat16; (T, in) to (T, out)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None):
        """Raises ValueError for a number of inputs that the kernel would read beyond."""
        if weight.shape[1] % _INT8_BLOCK:
            raise ValueError(
                f"int8 needs a linear layer of {weight.shape[1]} inputs, allowed multiples of "
                f"{_INT8_BLOCK}; use packing views or packed"
            )
        self._bias = bias
        scale = weight.abs().amax(1).clamp_min(1e-12) / 127.0
        self._weight = (weight / scale[:, None]).round_().to(torch.int8).contiguous()
        self._scale = scale.bfloat16()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        # The kernel for float32 is thirty times slower: it has no vector code.
        product = torch.ops.aten._weight_int8pack_mm(x.bfloat16(), self._weight, self._scale)
        return product.float() if self._bias is None else product.float() + self._bias


_CLASSES: dict[str, Callable[[torch.Tensor, torch.Tensor | None], LinearForm]] = {
    "views": ViewLinear,
    "packed": PackedLinear,
    "int8": Int8Linear,
}


def make_linear(form: str, weight: torch.Tensor, bias: torch.Tensor | None = None) -> LinearForm:
    """Return a layer in a form. Raises ValueError for one that is not known or not to be had."""
    if form not in FORMS:
        raise ValueError(f"packing is {form!r}, allowed {', '.join(FORMS)}")
    if not has_form(form):
        raise ValueError(f"packing {form} is not to be had with this build of torch; use views")
    return _CLASSES[form](weight, bias)


@cache
def has_form(form: str) -> bool:
    """Whether a form computes here what it should, at one token and at several."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 96, generator=generator)
    bias = torch.randn(48, generator=generator)
    tolerance = 0.05 if form == "int8" else 1e-4
    try:
        with torch.inference_mode():
            layer = _CLASSES[form](weight[:, :64], bias)
            for tokens in (1, 5):
                x = torch.randn(tokens, 64, generator=generator)
                expected = F.linear(x, weight[:, :64], bias)
                if (layer(x) - expected).norm() > tolerance * expected.norm():
                    return False
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    return True
