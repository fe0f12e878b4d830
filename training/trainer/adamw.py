"""AdamW (Loshchilov and Hutter, ICLR 2019) whose two moments may see different gradients.

Adam divides by the gradient's own size, so scaling the subnets' gradients by beta would not scale
their learning rate: the ramp of DepS would do nothing but mix. Here the first moment sees the
weighted gradients (full model + beta * subnets) and the second the unweighted ones (full model +
subnets). The update is then linear in beta, as with SGD, and the second moment is warm for the
gradients that come after the ramp. With equal gradients this is torch.optim.AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]

_kernels: Any = torch  # what torch.optim itself runs on, without declaring it
_PLACES = frozenset({"pos_embed", "cls_token"})  # which timm's ViTs don't decay either


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Whether weights decay: matrices and kernels, but for embeddings of places and classes."""
    return parameter.dim() > 1 and not _PLACES & set(name.split("."))


class AdamW:
    """Moments by parameter name, and the update. What decays: `is_decayed`."""

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        *,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
    ):
        self._parameters = parameters
        self._beta1, self._beta2, self._eps = beta1, beta2, eps
        self._weight_decay = weight_decay
        self.num_updates = 0
        self.momentum: Tensors = {}
        self.square: Tensors = {}

    @torch.no_grad()
    def step(self, lr: float, unweighted: Mapping[str, torch.Tensor] | None = None) -> None:
        """Update parameters that have a gradient; `unweighted` gradients feed the second moment."""
        self.num_updates += 1
        named = [(n, p, p.grad) for n, p in self._parameters.items() if p.grad is not None]
        if not named:
            return
        for name, parameter, _ in named:
            self.momentum.setdefault(name, torch.zeros_like(parameter))
            self.square.setdefault(name, torch.zeros_like(parameter))
        parameters, gradients = [p for _, p, _ in named], [g for _, _, g in named]
        means = [self.momentum[n] for n, _, _ in named]
        squares = [self.square[n] for n, _, _ in named]
        observed = gradients if unweighted is None else [unweighted[n] for n, _, _ in named]
        decayed = [p for n, p, _ in named if is_decayed(n, p)]
        # One kernel for all tensors of each operation, where there are such kernels (CUDA).
        _kernels._foreach_lerp_(means, gradients, 1.0 - self._beta1)
        _kernels._foreach_mul_(squares, self._beta2)
        _kernels._foreach_addcmul_(squares, observed, observed, 1.0 - self._beta2)
        if decayed:
            _kernels._foreach_mul_(decayed, 1.0 - lr * self._weight_decay)
        sizes = _kernels._foreach_div(squares, 1.0 - self._beta2**self.num_updates)
        _kernels._foreach_sqrt_(sizes)
        _kernels._foreach_add_(sizes, self._eps)
        rate = -lr / (1.0 - self._beta1**self.num_updates)
        _kernels._foreach_addcdiv_(parameters, means, sizes, rate)
