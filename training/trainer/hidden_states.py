"""Hidden states of a pass, and how far a subnet's are from its teacher's (DynaBERT)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from supernet.layers.blocks import BlockSequence

HiddenStates = dict[str, torch.Tensor]
EMBEDDING = "embedding"


@contextmanager
def recorded(net: nn.Module) -> Iterator[HiddenStates]:
    """What goes into the first block and comes out of every block, by block name, while open.

    Blocks keep their supernet names, so states of two subnets with the same name belong together.
    """
    states: HiddenStates = {}

    def keep_input(_: nn.Module, args: tuple[object, ...]) -> None:
        states.setdefault(EMBEDDING, _tensor(args[0]))

    def keep_output(name: str):
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            states[name] = _tensor(output)

        return hook

    sequences = {n: m for n, m in net.named_modules() if isinstance(m, BlockSequence)}
    with ExitStack() as hooks:
        for sequence, blocks in sequences.items():
            hooks.callback(blocks.register_forward_pre_hook(keep_input).remove)
            for name, block in blocks.named_children():
                hook = keep_output(f"{sequence}.{name}")
                hooks.callback(block.register_forward_hook(hook).remove)
        yield states


def hidden_loss(student: HiddenStates, teacher: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Sum over the student's states of the mean squared error to the teacher's of the same name.

    Source: DynaBERT (Hou et al., NeurIPS 2020), equation of the embedding and hidden terms.
    """
    errors = [F.mse_loss(state.float(), teacher[name].float()) for name, state in student.items()]
    return torch.stack(errors).sum()


def _tensor(value: object) -> torch.Tensor:
    """Blocks pass a tensor on, or a tuple that begins with one (and a mask)."""
    first = value[0] if isinstance(value, tuple) else value
    assert isinstance(first, torch.Tensor)
    return first
