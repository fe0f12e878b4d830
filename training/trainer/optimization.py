"""What turns gradients into new weights: SGD or AdamW, clipping, the average of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from training.config import OptimizerConfig
from training.trainer.adamw import AdamW, is_decayed

Tensors = dict[str, torch.Tensor]


class OptimizationState(NamedTuple):
    """Tensors by parameter name; `square` and `num_updates` are AdamW's."""

    momentum: Tensors
    square: Tensors
    average: Tensors
    num_updates: int
    num_averaged: int


class Optimization:
    """SGD with Nesterov momentum or AdamW over named parameters, and their average if asked for.

    `average` is empty without `ema_decay`; it starts as the weights and forgets its start quickly
    (the decay rises with the steps, min(decay, (1 + n) / (10 + n)) at step n).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], options: OptimizerConfig):
        self._parameters, self._options = parameters, options
        self._num_averaged = 0
        self.average: Tensors = (
            {name: p.detach().clone() for name, p in parameters.items()}
            if options.ema_decay > 0
            else {}
        )
        self.reset()

    @property
    def is_adaptive(self) -> bool:
        """Whether updates are divided by the gradients' size."""
        return self._options.name == "adamw"

    def reset(self) -> None:
        """Forget the moments."""
        options, parameters = self._options, self._parameters
        self._adamw = AdamW(
            parameters,
            beta1=options.momentum,
            beta2=options.beta2,
            eps=options.eps,
            weight_decay=options.weight_decay,
        )
        self._sgd = torch.optim.SGD(
            [
                {"params": [p for n, p in parameters.items() if is_decayed(n, p)]},
                {
                    "params": [p for n, p in parameters.items() if not is_decayed(n, p)],
                    "weight_decay": 0.0,
                },
            ],
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            nesterov=options.momentum > 0,
        )

    def zero_gradients(self) -> None:
        """Drop the gradients of the last step."""
        self._sgd.zero_grad(set_to_none=True)

    def step(self, lr: float, unweighted: Tensors | None = None) -> None:
        """Clip, update the weights at a learning rate, update their average.

        `unweighted`: the gradients without the ramp's weight, while there is one; used by AdamW.
        """
        if self._options.clip_norm > 0:
            limit = self._options.clip_norm
            norm = nn.utils.clip_grad_norm_(self._parameters.values(), limit)
            if unweighted is not None:
                factor = min(1.0, limit / (float(norm) + 1e-6))  # as clip_grad_norm_ scales
                unweighted = {name: g * factor for name, g in unweighted.items()}
        if self.is_adaptive:
            self._adamw.step(lr, unweighted)
        else:
            for group in self._sgd.param_groups:
                group["lr"] = lr
            self._sgd.step()
        if self.average:
            self._update_average()

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self._options.ema_decay, (1 + self._num_averaged) / (10 + self._num_averaged))
        averages = [self.average[name] for name in self._parameters]
        get_ema_multi_avg_fn(decay)(averages, [*self._parameters.values()], self._num_averaged)
        self._num_averaged += 1

    def state(self) -> OptimizationState:
        """Everything that the next update depends on; the tensors themselves, not copies."""
        if self.is_adaptive:
            momentum, square = self._adamw.momentum, self._adamw.square
        else:
            states = self._sgd.state
            square: Tensors = {}
            momentum = {
                name: states[p]["momentum_buffer"]
                for name, p in self._parameters.items()
                if states[p].get("momentum_buffer") is not None
            }
        return OptimizationState(
            momentum, square, self.average, self._adamw.num_updates, self._num_averaged
        )

    @torch.no_grad()
    def restore(self, state: OptimizationState) -> None:
        """Take back a saved state; parameters themselves are the caller's to restore."""
        for name, tensor in state.momentum.items():
            parameter = self._parameters[name]
            copied = torch.empty_like(parameter).copy_(tensor)
            if self.is_adaptive:
                self._adamw.momentum[name] = copied
                self._adamw.square[name] = torch.empty_like(parameter).copy_(state.square[name])
            else:
                self._sgd.state[parameter]["momentum_buffer"] = copied
        for name, tensor in state.average.items():
            self.average[name].copy_(tensor)
        self._adamw.num_updates = state.num_updates
        self._num_averaged = state.num_averaged
