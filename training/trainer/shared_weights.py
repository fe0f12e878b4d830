"""The supernet while it trains: one set of parameters, and a forward pass at any arch.

A subnet's pass calls the ordinary module of that arch with leading slices of the shared
parameters (`torch.func.functional_call` on a weightless skeleton), so gradients of every pass add
up in the shared parameters. BatchNorm uses the batch's own statistics and tracks none: running
statistics of a weight-shared network describe no subnet, they are calibrated afterwards.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from supernet.arch import Arch
from supernet.definition import SupernetDefinition
from supernet.slicing import leading_slice
from training.trainer.activation_checkpointing import checkpoint_blocks
from training.trainer.hidden_states import HiddenStates, recorded
from training.trainer.straight_through import with_low_bit

_MAX_SKELETONS = 512


class SharedWeights:
    """Trainable parameters of a supernet, by name, and its subnets as functions of them."""

    def __init__(
        self,
        definition: SupernetDefinition,
        *,
        device: str,
        seed: int,
        initial: Mapping[str, torch.Tensor] | None = None,
        is_checkpointed: bool = False,
    ):
        """Initialise the largest arch from `seed`, leaving torch's global generator alone.

        `initial` is a state_dict to take instead. `is_checkpointed`: blocks are run again going
        backward instead of keeping their activations (activation_checkpointing.py).
        """
        self._definition, self._is_checkpointed = definition, is_checkpointed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = definition.build()
        if initial is not None:
            net.load_state_dict(dict(initial))
        self.parameters: dict[str, nn.Parameter] = {
            name: nn.Parameter(_channels_last(p.detach().to(device)))
            for name, p in net.named_parameters()
        }
        self._buffers = {name: b.to(device) for name, b in net.named_buffers()}
        self._skeletons: OrderedDict[Arch, nn.Module] = OrderedDict()

    def forward(
        self,
        arch: Arch,
        x: torch.Tensor,
        parameters: Mapping[str, torch.Tensor] | None = None,
        *,
        dropout: torch.Tensor | None = None,
        precision: str = "fp32",
        hidden: HiddenStates | None = None,
    ) -> torch.Tensor:
        """(B, C, H, W) inputs to (B, K) logits of one subnet, differentiable, in train mode.

        `parameters` replace the shared ones (a teacher's, say), with the same names and shapes.
        `dropout` (B, features) scales what the classifier, the last linear layer, reads; `hidden`
        is filled with the pass's hidden states. `precision` names the quantiser of low-bit weights.
        """
        source = self.parameters if parameters is None else parameters
        if precision != "fp32":
            source = with_low_bit(source, self._definition, precision)
        shapes = self._definition.parameter_shapes(arch)
        slices = {name: leading_slice(source[name], shapes[name]) for name in shapes}
        skeleton = self._skeleton(arch)
        with ExitStack() as hooks:
            if dropout is not None:
                last = classifier(skeleton)
                scale = last.register_forward_pre_hook(lambda _, args: args[0] * dropout)
                hooks.callback(scale.remove)
            states = hooks.enter_context(recorded(skeleton)) if hidden is not None else {}
            logits = functional_call(skeleton, slices, (x,))
            if hidden is not None:
                hidden.update(states)
            return logits

    def dropout_mask(
        self, batch_size: int, rate: float, key: tuple[int, ...]
    ) -> torch.Tensor | None:
        """(B, features) of 0 and 1 / (1 - rate) for the full model, drawn by `key`; None at 0."""
        if rate == 0.0:
            return None
        features = classifier(self._skeleton(self._definition.space.largest)).in_features
        kept = np.random.default_rng(key).random((batch_size, features)) >= rate
        device = next(iter(self.parameters.values())).device
        return torch.from_numpy(kept).to(device, torch.float32) / (1.0 - rate)

    def state(self) -> dict[str, torch.Tensor]:
        """The state_dict of the largest arch; its running statistics are not calibrated."""
        weights = {name: p.detach() for name, p in self.parameters.items()}
        return {**weights, **self._buffers}

    def _skeleton(self, arch: Arch) -> nn.Module:
        if arch in self._skeletons:
            self._skeletons.move_to_end(arch)
            return self._skeletons[arch]
        skeleton = self._definition.on_meta(arch).train()
        for module in skeleton.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None
        if self._is_checkpointed:
            checkpoint_blocks(skeleton)
        self._skeletons[arch] = skeleton
        if len(self._skeletons) > _MAX_SKELETONS:
            self._skeletons.popitem(last=False)
        return skeleton


def classifier(net: nn.Module) -> nn.Linear:
    """The last linear layer of a network."""
    *_, last = (module for module in net.modules() if isinstance(module, nn.Linear))
    return last


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
