"""Activation checkpointing: blocks keep what goes into them, and are run again going backward.

A pass at an arch is a functional call with slices of the shared weights; when it goes backward that
call is over and its modules are weightless again. So each block's second run is given the tensors
that its first one read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from supernet.layers.blocks import BlockSequence, KernelChoice


def checkpoint_blocks(net: nn.Module) -> None:
    """Let every block of a network be run twice instead of keeping its inner activations.

    Gradients are those of the plain network. Source: Chen et al., Training Deep Nets with Sublinear
    Memory Cost, 2016, with one segment per block.
    """
    for block in list(innermost_blocks(net)):
        block.forward = _run_twice(block)  # type: ignore[method-assign]


def innermost_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Members of the network's block sequences that hold no sequence themselves.

    The kernels to choose from inside a block are part of it.
    """
    for child in module.children():
        is_member = isinstance(module, BlockSequence) and not isinstance(child, BlockSequence)
        if is_member and not _has_sequence(child):
            yield child
        else:
            yield from innermost_blocks(child)


def _has_sequence(module: nn.Module) -> bool:
    return any(
        isinstance(inner, BlockSequence) and not isinstance(inner, KernelChoice)
        for inner in module.modules()
    )


class _Bare(nn.Module):
    """A block's own forward, without what has been put in its place, or is hooked to it."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, *inputs: object) -> object:
        return type(self.block).forward(self.block, *inputs)


def _run_twice(block: nn.Module) -> Callable[..., object]:
    bare = _Bare(block)

    def forward(*inputs: object) -> object:
        read: dict[str, torch.Tensor] = dict(bare.named_parameters(remove_duplicate=False))
        return checkpoint(
            lambda *again: functional_call(bare, read, again), *inputs, use_reentrant=False
        )

    return forward
