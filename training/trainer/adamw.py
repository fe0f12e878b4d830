"""AdamW (Loshchilov and Hutter, ICLR 2019) whose two moments may see different gradients.

Adam divides by the gradient's own size, so scaling the subnets' gradients by beta would not scale
their learning rate: the ramp of DepS would do nothing but mix. Here the first moment sees the
weighted gradients (full model + beta * subnets) and the second the unweighted ones (full model +
subnets). The update is then linear in beta, as with SGD, and the second moment is warm for the
gradients that come after the ramp. With equal gradients this is torch.optim.AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

Tensors = dict[str, torch.Tensor]


class AdamW:
    """Moments by parameter name, and the update. Weight decay only on matrices and kernels."""

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
        correction1 = 1.0 - self._beta1**self.num_updates
        correction2 = 1.0 - self._beta2**self.num_updates
        for name, parameter in self._parameters.items():
            gradient = parameter.grad
            if gradient is None:
                continue
            for_square = gradient if unweighted is None else unweighted[name]
            mean = self.momentum.setdefault(name, torch.zeros_like(parameter))
            square = self.square.setdefault(name, torch.zeros_like(parameter))
            mean.lerp_(gradient, 1.0 - self._beta1)
            square.mul_(self._beta2).addcmul_(for_square, for_square, value=1.0 - self._beta2)
            if parameter.dim() > 1:
                parameter.mul_(1.0 - lr * self._weight_decay)
            size = (square / correction2).sqrt_().add_(self._eps)
            parameter.addcdiv_(mean, size, value=-lr / correction1)
