"""The actuated path equals the extracted static subnet, and actuation moves nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from subnetact import Actuator, insert_operators
from supernet import Arch, Checkpoint, SupernetDefinition, define_supernet, extract

StatisticsOf = Callable[[Arch, int], dict[str, torch.Tensor]]


@pytest.fixture
def net(checkpoint: Checkpoint) -> torch.nn.Module:
    net = checkpoint.definition.build().eval()
    net.load_state_dict(dict(checkpoint.state))
    return net


@torch.inference_mode()
def test_actuated_forward_equals_extract_for_every_arch_bit_for_bit(
    net: torch.nn.Module, tiny: SupernetDefinition, statistics_of: StatisticsOf
) -> None:
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    actuator = Actuator(net, tiny)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    statistics = {arch: statistics_of(arch, seed) for seed, arch in enumerate(tiny.space)}
    for arch in tiny.space:
        actuator.register(arch, statistics[arch])
    answers = []
    for arch in tiny.space:
        actuator.actuate(arch.subnet_id)
        answers.append(net(x))
        expected = extract(state, tiny, arch, statistics[arch])(x)
        assert torch.equal(answers[-1], expected), arch.subnet_id
    assert len({tuple(a.flatten().tolist()) for a in answers}) == len(answers)


@torch.inference_mode()
def test_returning_to_a_subnet_gives_the_first_answer_again(
    net: torch.nn.Module, tiny: SupernetDefinition, statistics_of: StatisticsOf
) -> None:
    actuator = Actuator(net, tiny)
    a, b = tiny.space.smallest, tiny.space.largest
    for seed, arch in enumerate((a, b)):
        actuator.register(arch, statistics_of(arch, seed))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    answers = []
    for arch in (a, b, a):
        actuator.actuate(arch.subnet_id)
        answers.append(net(x))
    assert torch.equal(answers[0], answers[2])
    assert not torch.equal(answers[0], answers[1])


def test_a_thousand_random_switches_copy_nothing(
    net: torch.nn.Module,
    tiny: SupernetDefinition,
    statistics_of: StatisticsOf,
    rng: np.random.Generator,
) -> None:
    actuator = Actuator(net, tiny)
    archs = [tiny.space.sample(rng) for _ in range(20)]
    for seed, arch in enumerate(archs):
        actuator.register(arch, statistics_of(arch, seed))
    pointers = {name: p.data_ptr() for name, p in net.named_parameters()}
    operators = actuator.insertion.operators
    views = {name: list(op.views) for name, op in operators.items() if hasattr(op, "views")}
    for i in rng.integers(len(archs), size=1000):
        actuator.actuate(archs[i].subnet_id)
        assert actuator.current == archs[i].subnet_id
    assert {name: p.data_ptr() for name, p in net.named_parameters()} == pointers
    for name, before in views.items():
        after = operators[name].views
        assert len(after) == len(before)
        assert all(x is y for x, y in zip(after, before, strict=True))
        weights = [view[0] for view in before if view is not None]
        if type(operators[name]).__name__ != "SubnetNorm":
            assert {w.data_ptr() for w in weights} == {pointers[f"{name}.weight"]}


def test_each_thread_has_its_own_current_subnet(
    net: torch.nn.Module, tiny: SupernetDefinition, statistics_of: StatisticsOf
) -> None:
    actuator = Actuator(net, tiny)
    for seed, arch in enumerate((tiny.space.smallest, tiny.space.largest)):
        actuator.register(arch, statistics_of(arch, seed))
    actuator.actuate(tiny.space.largest.subnet_id)
    seen = []

    def other_thread() -> None:
        actuator.actuate(tiny.space.smallest.subnet_id)
        seen.append(actuator.current)

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join()
    assert seen == [tiny.space.smallest.subnet_id]
    assert actuator.current == tiny.space.largest.subnet_id


def test_insertion_is_idempotent_keeps_names_and_reports(
    net: torch.nn.Module, checkpoint: Checkpoint
) -> None:
    names = set(net.state_dict())
    first = insert_operators(net)
    assert insert_operators(net) is first
    assert set(net.state_dict()) == names == set(checkpoint.state)
    assert first.summary() == "10 Conv2dSlice, 10 SubnetNorm, 2 LayerSelect, 1 LinearSlice"


def test_a_module_that_no_operator_slices_is_named() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.PReLU())
    with pytest.raises(ValueError, match=r"module 1 \(PReLU\) holds weight"):
        insert_operators(net)


def test_registering_refuses_what_it_cannot_serve(
    net: torch.nn.Module, tiny: SupernetDefinition, statistics_of: StatisticsOf
) -> None:
    actuator = Actuator(net, tiny)
    with pytest.raises(ValueError, match="lack or misshape bn1.running_mean"):
        actuator.register(tiny.space.smallest, {})
    with pytest.raises(ValueError, match="resolution is 32, allowed 8"):
        actuator.register(define_supernet("resnet20_cifar").space.smallest, {})
    actuator.register(tiny.space.smallest, statistics_of(tiny.space.smallest, 0))
    with pytest.raises(KeyError, match="'d9' is not registered; registered: d1-w0.5"):
        actuator.actuate("d9")
