"""Tiny decoders with random weights, and the plain loop that streams are held equal to."""

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
def elastic_decoder() -> Checkpoint:
    """All axes: widths, query heads per group, depth; and a window in its middle block."""
    return random_decoder(
        define_supernet(
            "decoder_tiny",
            qkv_bias=True,
            qk_norm=True,
            num_heads=6,
            depth=3,
            heads_choices=(1, 2, 3),
            depth_choices=(1, 2, 3),
            windows=(0, 6, 0),
        )
    )


@pytest.fixture(scope="session")
def make_decoder() -> Callable[[SupernetDefinition], Checkpoint]:
    """Random weights for a definition."""
    return random_decoder


PlainLogits = Callable[[Sequence[int], Sequence[Arch]], torch.Tensor]


def plain_loop(checkpoint: Checkpoint) -> PlainLogits:
    """Logits (N, V) of a text whose tokens were computed on subnets of their own.

    The plain network on the whole context, its largest arch, in which each token sees as zeros the
    hidden units and heads beyond its subnet's, and all of a block that its subnet leaves out: then
    the block only makes its keys and values. With one subnet throughout that is the extracted one.
    """
    definition = checkpoint.definition
    net = extract(checkpoint.state, definition, definition.space.largest)
    masks: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable[..., tuple[torch.Tensor]]:
        return lambda _module, inputs: (inputs[0] * masks[name],)

    for name, module in net.named_modules():
        if name.endswith(("mlp.down", "attn.proj")):
            module.register_forward_pre_hook(hook(name))
    depth = definition.config.depth  # type: ignore[attr-defined]

    def kept(arch: Arch, name: str, columns: int) -> torch.Tensor:
        """The columns of a weight that an arch reads, (columns,) of 0 and 1."""
        shapes = definition.parameter_shapes(arch)
        own = shapes.get(f"{name}.weight", (0, 0))[1]
        return (torch.arange(columns) < own).float()

    def logits(ids: Sequence[int], archs: Sequence[Arch]) -> torch.Tensor:
        for i in range(depth):
            for part in ("mlp.down", "attn.proj"):
                name = f"blocks.{i}.{part}"
                columns = checkpoint.state[f"{name}.weight"].shape[1]
                rows = {arch: kept(arch, name, columns) for arch in set(archs)}
                masks[name] = torch.stack([rows[arch] for arch in archs])
        with torch.inference_mode():
            return net(torch.tensor([list(ids)]))[0]

    return logits


@pytest.fixture(scope="session")
def make_plain_loop() -> Callable[[Checkpoint], PlainLogits]:
    """The plain loop of a checkpoint."""
    return plain_loop


@pytest.fixture(scope="session")
def plain_logits(decoder: Checkpoint) -> Callable[[Sequence[int], Sequence[str]], torch.Tensor]:
    """The plain loop of `decoder`, by the ids of its subnets."""
    loop = plain_loop(decoder)
    archs: dict[str, Arch] = {subnet.subnet_id: subnet.arch for subnet in decoder.subnets}
    return lambda ids, subnet_ids: loop(ids, [archs[i] for i in subnet_ids])
