"""Principle 1 on the one family: every subnet is a set of leading slices of the supernet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from supernet import SupernetDefinition, cost, define_supernet, extract
from supernet.registry import list_families


def test_every_parameter_of_every_arch_exists_in_the_largest_and_fits(
    tiny: SupernetDefinition,
) -> None:
    whole = tiny.parameter_shapes(tiny.space.largest)
    for arch in tiny.space:
        for name, shape in tiny.parameter_shapes(arch).items():
            assert all(n <= m for n, m in zip(shape, whole[name], strict=True)), (arch, name)


def test_resnet20_has_the_published_size() -> None:
    definition = define_supernet("resnet20_cifar", width_choices=(1.0,), expand_choices=(1.0,))
    largest = cost(definition, definition.space.largest)
    # He et al. report 0.27 M parameters and about 41 M multiply-adds with shortcut A; the two
    # projections of shortcut B add 2,752 parameters and 0.26 M multiply-adds.
    assert largest.params == 272_474
    assert largest.macs == pytest.approx(41.1e6, rel=0.01)


def test_macs_agree_with_torchs_flop_counter_on_random_archs(rng: np.random.Generator) -> None:
    definition = define_supernet("resnet20_cifar")
    for _ in range(10):
        arch = definition.space.sample(rng)
        net = definition.on_meta(arch).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 32, 32, device="meta"))
        assert cost(definition, arch).macs * 2 == counter.get_total_flops()


def test_extracted_tensors_are_copies_of_the_leading_slices(
    tiny: SupernetDefinition, tiny_state: dict[str, torch.Tensor], rng: np.random.Generator
) -> None:
    arch = tiny.space.sample(rng)
    subnet = extract(tiny_state, tiny, arch)
    for name, parameter in subnet.named_parameters():
        slices = tuple(slice(n) for n in parameter.shape)
        assert torch.equal(parameter, tiny_state[name][slices])
        assert parameter.data_ptr() != tiny_state[name].data_ptr()


def test_the_largest_extracted_subnet_is_the_supernet(
    tiny: SupernetDefinition, tiny_state: dict[str, torch.Tensor]
) -> None:
    net = tiny.build().eval()
    net.load_state_dict(tiny_state)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(extract(tiny_state, tiny, tiny.space.largest)(x), net(x))


def test_a_block_keeps_its_name_when_the_one_before_it_is_absent(tiny: SupernetDefinition) -> None:
    shapes = tiny.parameter_shapes(tiny.space.uniform(depth=1))
    assert "layer2.0.conv1.weight" in shapes
    assert not any(name.startswith(("layer1.1", "layer2.1")) for name in shapes)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown supernet 'resnet21'; known: .*resnet20_cifar"):
        define_supernet("resnet21")
    with pytest.raises(ValueError, match="unknown config key depht; known are .*depths"):
        define_supernet("resnet20_cifar", depht=3)
    assert "resnet" in list_families()


def test_a_definition_round_trips_through_json(tiny: SupernetDefinition) -> None:
    assert SupernetDefinition.from_json(tiny.to_json()) == tiny
