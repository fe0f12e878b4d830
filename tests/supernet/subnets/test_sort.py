from __future__ import annotations

import torch

from supernet import SupernetDefinition, extract
from supernet.subnets.sort import importance_order, permute_channels


def test_sorting_keeps_the_function_and_puts_important_channels_first(
    tiny: SupernetDefinition, tiny_state: dict[str, torch.Tensor]
) -> None:
    groups = tiny.family.channel_groups(tiny.config)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    largest = tiny.space.largest
    with torch.inference_mode():
        before = extract(tiny_state, tiny, largest)(x)
        permute_channels(tiny_state, groups, importance_order(tiny_state, groups))
        after = extract(tiny_state, tiny, largest)(x)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    reads = tiny_state["layer1.0.conv2.weight"].abs().sum((0, 2, 3))
    assert torch.equal(reads, reads.sort(descending=True).values)


def test_every_elastic_dimension_belongs_to_a_group(tiny: SupernetDefinition) -> None:
    groups = tiny.family.channel_groups(tiny.config)
    grouped = {entry for group in groups for entry in (*group.produced, *group.consumed)}
    whole = tiny.parameter_shapes(tiny.space.largest)
    for arch in tiny.space:
        for name, shape in tiny.parameter_shapes(arch).items():
            for dim, (n, m) in enumerate(zip(shape, whole[name], strict=True)):
                assert n == m or (name, dim) in grouped, (name, dim)


def test_momentum_is_permuted_with_the_weights(
    tiny: SupernetDefinition, tiny_state: dict[str, torch.Tensor]
) -> None:
    groups = tiny.family.channel_groups(tiny.config)
    momentum = {name: t.clone() for name, t in tiny_state.items() if name.endswith("weight")}
    order = importance_order(tiny_state, groups)
    permute_channels(tiny_state, groups, order)
    permute_channels(momentum, groups, order)
    for name, tensor in momentum.items():
        assert torch.equal(tensor, tiny_state[name])
