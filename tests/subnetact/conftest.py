"""A tiny decoder with random weights, and the plain loop that streams are held equal to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from supernet import Arch, Checkpoint, InputSpec, ServedSubnet, cost, define_supernet, extract
from supernet.definition import SupernetDefinition


def random_decoder(definition: SupernetDefinition, seed: int = 0) -> Checkpoint:
    """A checkpoint of the ladder whose weights keep logits well apart."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in definition.on_meta().state_dict().items():
        drawn = torch.randn(tensor.shape, generator=generator)
        scale = 1.0 if "embedding" in name else 1.5 / tensor.shape[-1] ** 0.5
        state[name] = drawn * scale if tensor.dim() > 1 else 1.0 + 0.2 * drawn
    ladder = definition.space.ladder()
    return Checkpoint(
        name="random decoder",
        accuracy_source="top1_agreement: made up",
        definition=definition,
        input=InputSpec(channels=1, height=1, width=64, mean=(0.0,), std=(1.0,), kind="tokens"),
        state=state,
        norm_statistics={arch.subnet_id: {} for arch in ladder},
        subnets=tuple(
            ServedSubnet(
                arch=arch,
                accuracy=0.5 + i / 10,
                ci95=(0.0, 1.0),
                **cost(definition, arch)._asdict(),
            )
            for i, arch in enumerate(ladder)
        ),
    )


@pytest.fixture(scope="session")
def decoder() -> Checkpoint:
    """Four widths, grouped queries, biases and norms of queries and keys: all that there is."""
    return random_decoder(define_supernet("decoder_tiny", qkv_bias=True, qk_norm=True))


@pytest.fixture(scope="session")
def make_decoder() -> Callable[[SupernetDefinition], Checkpoint]:
    """Random weights for a definition."""
    return random_decoder


PlainLogits = Callable[[Sequence[int], Sequence[str]], torch.Tensor]


@pytest.fixture(scope="session")
def plain_logits(decoder: Checkpoint) -> PlainLogits:
    """Logits (N, V) of a text whose tokens were computed at widths of their own.

    The plain network on the whole context, its largest arch, in which each token sees the hidden
    units beyond its width as zeros. With one width throughout it is the extracted subnet.
    """
    definition = decoder.definition
    net = extract(decoder.state, definition, definition.space.largest)
    widths: list[torch.Tensor] = []

    def mask(_module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0] * widths[-1],)

    for name, module in net.named_modules():
        if name.endswith("mlp.down"):
            module.register_forward_pre_hook(mask)
    hidden = definition.config.hidden  # type: ignore[attr-defined]
    archs: dict[str, Arch] = {subnet.subnet_id: subnet.arch for subnet in decoder.subnets}

    def logits(ids: Sequence[int], subnet_ids: Sequence[str]) -> torch.Tensor:
        kept = torch.tensor([int(hidden * archs[i].expand[0]) for i in subnet_ids])
        widths.append((torch.arange(hidden) < kept[:, None]).float())
        with torch.inference_mode():
            return net(torch.tensor([list(ids)]))[0]

    return logits
