"""What holds for every family: subnets are leading slices, and all counters say the same.

Small images are used where the shape of the weights does not depend on them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from subnetact import Actuator
from supernet import Arch, Subgraph, SupernetDefinition, cost, define_supernet, extract
from supernet.layers.neighbours import Neighbourhood
from supernet.registry import get_family, list_families
from supernet.subnets.sort import importance_order, permute_channels, rms_activations

# One member of each family, narrow in classes so that heads do not dominate.
MEMBERS = {
    "resnet": define_supernet("resnet_tiny"),
    "pooled_resnet": define_supernet("pooled_resnet_tiny"),
    "ofa_resnet50": define_supernet("ofa_resnet50", num_classes=10),
    "ofa_mobilenet_v3": define_supernet("ofa_mobilenet_v3", num_classes=10),
    "ofa_proxyless": define_supernet("ofa_proxyless_w1.0", num_classes=10),
    "mobilenet_v3": define_supernet("mobilenetv3_small_100", num_classes=10),
    "efficientnet_lite": define_supernet("tf_efficientnet_lite0", num_classes=10),
    "vit": define_supernet("vit_tiny_patch16_224", num_classes=10, resolution=32),
    "image_tower": define_supernet(
        "vit_small_patch14_reg4_dinov2",
        num_classes=10,
        resolution=28,
        depth=6,
        depth_choices=(3, 4, 5, 6),
    ),
    "siglip": define_supernet(
        "vit_base_patch16_siglip_224",
        resolution=32,
        width=192,
        depth=4,
        num_heads=3,
        depth_choices=(2, 3, 4),
        heads_choices=(1, 2, 3),
    ),
    "convnext": define_supernet("convnext_atto", num_classes=10, resolution=32),
    "bert": define_supernet("bert_tiny", vocab_size=100, num_tokens=12),
    "decoder": define_supernet("decoder_tiny"),
    "elastic_decoder": define_supernet(
        "decoder_tiny",
        num_heads=6,
        depth=4,
        heads_choices=(1, 2, 3),
        depth_choices=(2, 3, 4),
        windows=(0, 5, 5, 0),
        qkv_bias=True,
    ),
    "graph_sage": define_supernet("graph_sage_attention", num_features=20, degree=6),
}
COUNTS = [10, pytest.param(50, marks=pytest.mark.slow)]  # of archs that are drawn


def random_state(definition: SupernetDefinition, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights that keep activations near one, and statistics that differ per channel."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in definition.on_meta().state_dict().items():
        if not tensor.is_floating_point():
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
        elif tensor.dim() > 1:
            fan_in = tensor[0].numel()
            state[name] = torch.randn(tensor.shape, generator=generator) * (1.5 / fan_in) ** 0.5
        else:
            center = 1.0 if name.endswith(("running_var", "weight")) else 0.0
            state[name] = center + 0.2 * torch.rand(tensor.shape, generator=generator)
    return state


def small_input(definition: SupernetDefinition, arch: Arch) -> Any:
    """Two random inputs, images of at most 32 pixels."""
    example: Any = definition.example_input(arch, 2)
    generator = torch.Generator().manual_seed(1)
    if isinstance(example, Neighbourhood):
        return example._replace(features=torch.randn(example.features.shape, generator=generator))
    if not example.is_floating_point():
        return torch.randint(1, 100, example.shape, generator=generator)
    size = min(arch.resolution, 32)
    return torch.randn(*example.shape[:2], size, size, generator=generator)


def statistics_of(definition: SupernetDefinition, arch: Arch) -> dict[str, torch.Tensor]:
    """Statistics of the subnet's own."""
    generator = torch.Generator().manual_seed(abs(hash(arch)) % 2**31)
    return {
        name: torch.rand(shape, generator=generator) + 0.5
        for name, shape in definition.buffer_shapes(arch).items()
        if name.endswith(("running_mean", "running_var"))
    }


def _module_of(family: str) -> str:
    return get_family(family).module.__module__


def test_every_built_in_family_is_covered() -> None:
    built_in = [f for f in list_families() if _module_of(f).startswith("supernet.families.")]
    assert {net.family_name for net in MEMBERS.values()} == set(built_in)


@pytest.mark.parametrize("num_archs", COUNTS)
@pytest.mark.parametrize("family", MEMBERS)
@torch.inference_mode()
def test_the_actuated_forward_equals_the_extracted_one(family: str, num_archs: int) -> None:
    definition = MEMBERS[family]
    state = random_state(definition)
    net = definition.on_meta()
    net.load_state_dict({n: t.clone() for n, t in state.items()}, assign=True)
    actuator = Actuator(net.eval(), definition)
    rng = np.random.default_rng(0)
    space = definition.space
    drawn = {space.sample(rng) for _ in range(num_archs)}
    for arch in {space.smallest, space.largest} | drawn:
        statistics = statistics_of(definition, arch)
        actuator.actuate(actuator.register(arch, statistics))
        x = small_input(definition, arch)
        subnet = extract(state, definition, arch, statistics)
        expected = subnet(x)
        assert expected.std() > 0
        torch.testing.assert_close(net(x), expected, atol=1e-4, rtol=1e-4)
        stored = sum(p.numel() * p.element_size() for p in subnet.parameters())
        assert Subgraph.of(definition, arch).num_bytes() == stored


@pytest.mark.parametrize("family", MEMBERS)
def test_every_parameter_is_a_leading_slice_of_the_supernets_of_that_name(family: str) -> None:
    definition = MEMBERS[family]
    whole = {**definition.parameter_shapes(), **definition.buffer_shapes()}
    rng = np.random.default_rng(1)
    space = definition.space
    archs = [space.smallest, space.largest, *(space.sample(rng) for _ in range(50))]
    used = set()
    for number, arch in enumerate(archs):
        shapes = {**definition.parameter_shapes(arch), **definition.buffer_shapes(arch)}
        if number < 12:  # building takes a hundred times as long as describing
            built = definition.on_meta(arch).state_dict()
            assert {name: tuple(t.shape) for name, t in built.items()} == shapes
        for name, shape in shapes.items():
            assert len(shape) == len(whole[name]), name
            assert all(n <= m for n, m in zip(shape, whole[name], strict=True)), (arch, name)
        used |= set(shapes)
    assert used == set(whole), "the supernet holds a tensor that no subnet uses"


@pytest.mark.parametrize("family", MEMBERS)
def test_subgraphs_meet_in_the_smaller_of_each_pair_of_sizes(family: str) -> None:
    definition = MEMBERS[family]
    rng = np.random.default_rng(2)
    for _ in range(25):
        a, b = (definition.space.sample(rng) for _ in range(2))
        mine, other = (definition.parameter_shapes(arch) for arch in (a, b))
        # Brute force along every dimension: an index is in both boxes when it is in each.
        expected = sum(
            int(
                np.prod(
                    [
                        np.sum((np.arange(max(n, m)) < n) & (np.arange(max(n, m)) < m))
                        for n, m in zip(mine[name], other[name], strict=True)
                    ]
                )
            )
            for name in mine.keys() & other.keys()
        )
        assert (Subgraph.of(definition, a) & Subgraph.of(definition, b)).num_elements == expected


@pytest.mark.parametrize("family", MEMBERS)
def test_macs_agree_with_torchs_flop_counter(family: str) -> None:
    definition = MEMBERS[family]
    rng = np.random.default_rng(3)
    space = definition.space
    for arch in (space.smallest, space.largest, space.sample(rng), space.sample(rng)):
        net = definition.on_meta(arch).eval()
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            net(definition.example_input(arch))
        assert cost(definition, arch).macs * 2 == counter.get_total_flops()


@pytest.mark.parametrize("family", MEMBERS)
@torch.inference_mode()
def test_sorting_channels_keeps_the_function_and_puts_important_ones_first(family: str) -> None:
    definition = MEMBERS[family]
    groups = definition.family.channel_groups(definition.config)
    state = random_state(definition)
    largest = definition.space.largest
    x = small_input(definition, largest)
    net = extract(state, definition, largest)
    before = net(x)
    order = importance_order(state, groups, rms_activations(net, groups, [x]))
    permute_channels(state, groups, order)
    net = extract(state, definition, largest)
    torch.testing.assert_close(net(x), before, atol=1e-3, rtol=1e-3)
    again = importance_order(state, groups, rms_activations(net, groups, [x]))
    assert all(order == sorted(order) for order in again.values())


@pytest.mark.parametrize("family", MEMBERS)
def test_every_elastic_dimension_belongs_to_a_channel_group(family: str) -> None:
    definition = MEMBERS[family]
    groups = definition.family.channel_groups(definition.config)
    grouped = {entry for group in groups for entry in (*group.produced, *group.consumed)}
    whole = {**definition.parameter_shapes(), **definition.buffer_shapes()}
    assert {name for name, _ in grouped} <= set(whole)
    rng = np.random.default_rng(4)
    for arch in (definition.space.smallest, *(definition.space.sample(rng) for _ in range(10))):
        shapes = {**definition.parameter_shapes(arch), **definition.buffer_shapes(arch)}
        for name, shape in shapes.items():
            for dim, (n, m) in enumerate(zip(shape, whole[name], strict=True)):
                assert n == m or (name, dim) in grouped, (name, dim)


@pytest.mark.parametrize("family", MEMBERS)
def test_a_neighbour_and_a_ladder_stay_inside_the_space(family: str) -> None:
    space = MEMBERS[family].space
    arch = space.sample(np.random.default_rng(5))
    assert all(neighbour in space for neighbour in space.neighbours(arch))
    assert all(step in space for step in space.ladder())
    assert Arch.from_json(arch.to_json()) == arch
    assert space.whole == space.largest or space.whole not in space
