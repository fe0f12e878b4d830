"""What turns gradients into new weights: SGD, clipping, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from training.config import OptimizerConfig

Tensors = dict[str, torch.Tensor]


class Optimization:
    """SGD with Nesterov momentum over named parameters, and their average if one is asked for.

    `average` is empty without `ema_decay`; it starts as the weights and forgets its start quickly
    (the decay rises with the steps, min(decay, (1 + n) / (10 + n)) at step n).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], options: OptimizerConfig):
        self._parameters, self._options = parameters, options
        self.num_averaged = 0
        self.average: Tensors = (
            {name: p.detach().clone() for name, p in parameters.items()}
            if options.ema_decay > 0
            else {}
        )
        self.reset()

    def reset(self) -> None:
        """Forget the momentum."""
        options, parameters = self._options, self._parameters.values()
        self._sgd = torch.optim.SGD(
            [
                {"params": [p for p in parameters if p.dim() > 1]},
                {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
            ],
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            nesterov=options.momentum > 0,
        )

    def zero_gradients(self) -> None:
        """Drop the gradients of the last step."""
        self._sgd.zero_grad(set_to_none=True)

    def step(self, lr: float) -> None:
        """Clip, update the weights at a learning rate, update their average."""
        for group in self._sgd.param_groups:
            group["lr"] = lr
        if self._options.clip_norm > 0:
            nn.utils.clip_grad_norm_(self._parameters.values(), self._options.clip_norm)
        self._sgd.step()
        if self.average:
            self._update_average()

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self._options.ema_decay, (1 + self.num_averaged) / (10 + self.num_averaged))
        for name, parameter in self._parameters.items():
            self.average[name].lerp_(parameter, 1.0 - decay)
        self.num_averaged += 1

    def momentum(self) -> Tensors:
        """The momentum buffers by parameter name; those that exist yet."""
        states = self._sgd.state
        return {
            name: states[p]["momentum_buffer"]
            for name, p in self._parameters.items()
            if states[p].get("momentum_buffer") is not None
        }

    @torch.no_grad()
    def restore(self, momentum: Mapping[str, torch.Tensor], average: Tensors, count: int) -> None:
        """Take back a saved state; parameters themselves are the caller's to restore."""
        for name, buffer in momentum.items():
            parameter = self._parameters[name]
            copied = torch.empty_like(parameter).copy_(buffer)
            self._sgd.state[parameter]["momentum_buffer"] = copied
        for name, tensor in average.items():
            self.average[name].copy_(tensor)
        self.num_averaged = count
