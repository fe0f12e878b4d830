from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from supernet import cost, define_supernet
from training.config import LossConfig, TrainConfig
from training.losses import alpha_divergence, distillation_loss
from training.sampling import SAMPLERS
from training.strategy import make_strategy

DEFINITION = define_supernet("resnet20_cifar")
SPACE = DEFINITION.space
STEPS_PER_EPOCH = 10

MakeConfig = Callable[..., TrainConfig]


def strategy_of(make_config: MakeConfig, **schedule: object):
    config = make_config(schedule={"epochs": 60, **schedule})
    return make_strategy(config, SPACE, STEPS_PER_EPOCH)


def test_the_sandwich_trains_max_min_and_random_from_the_first_step(
    make_config: MakeConfig,
) -> None:
    strategy = strategy_of(make_config, strategy="sandwich")
    plan = strategy.plan(0)
    assert [task.arch for task in plan[:2]] == [SPACE.largest, SPACE.smallest]
    assert len(plan) == 4
    assert {task.weight for task in plan} == {1.0}
    assert strategy.events(0) == ()


def test_progressive_shrinking_opens_one_dimension_after_the_other(
    make_config: MakeConfig,
) -> None:
    strategy = strategy_of(make_config, strategy="progressive")
    # 180 : 150 : 150 epochs without an elastic kernel: switches at 225 and 412.5 of 600 steps.
    assert strategy.events(225) == ("freeze_teacher", "reset_optimizer")
    assert strategy.events(412) == ("sort_channels", "reset_optimizer")
    assert [len(strategy.plan(step)) for step in (0, 224, 225, 411, 412)] == [1, 1, 2, 2, 4]
    for step in range(225, 412):
        for task in strategy.plan(step):
            assert set(task.arch.expand) | set(task.arch.width) == {1.0}
            assert task.target == "labels_and_teacher"
    late = [task.arch for step in range(412, 600) for task in strategy.plan(step)]
    assert {e for arch in late for e in arch.expand} == {0.5, 0.75, 1.0}
    assert {w for arch in late for w in arch.width} == {0.5, 0.75, 1.0}


def test_each_phase_has_a_cosine_of_its_own(make_config: MakeConfig) -> None:
    strategy = strategy_of(make_config, strategy="progressive")
    assert strategy.lr(224) < 0.001 * strategy.lr(0)
    assert strategy.lr(225) == pytest.approx(0.09 * strategy.lr(0))


def test_the_compound_strategy_trains_the_ladder_only(make_config: MakeConfig) -> None:
    strategy = strategy_of(make_config, strategy="compound")
    switch = round(600 * 180 / 330)
    assert strategy.events(switch) == ("sort_channels", "freeze_teacher", "reset_optimizer")
    archs = {task.arch for step in range(switch, 600) for task in strategy.plan(step)}
    assert archs == set(SPACE.ladder())


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_draws_legal_archs_that_depend_on_step_and_slot_only(name: str) -> None:
    first, again, other = (SAMPLERS[name](SPACE, seed) for seed in (0, 0, 1))
    drawn = [first.draw(step, slot) for step in range(50) for slot in range(2)]
    assert all(arch in SPACE for arch in drawn)
    assert drawn == [again.draw(step, slot) for step in range(50) for slot in range(2)]
    assert drawn != [other.draw(step, slot) for step in range(50) for slot in range(2)]


def test_the_spread_sampler_covers_sizes_that_uniform_draws_miss() -> None:
    def macs(name: str) -> np.ndarray:
        sampler = SAMPLERS[name](SPACE, 0)
        return np.array([cost(DEFINITION, sampler.draw(step, 0)).macs for step in range(150)])

    low = cost(DEFINITION, SPACE.smallest).macs
    span = cost(DEFINITION, SPACE.largest).macs - low
    uniform, spread = ((macs(name) - low) / span for name in ("uniform", "spread"))
    assert np.mean(uniform > 0.6) < 0.05
    assert np.mean(spread > 0.6) > 0.15
    assert spread.std() > 1.5 * uniform.std()


def test_alpha_divergence_is_kl_at_one_and_zero_between_equals() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.softmax(torch.randn(6, 5, generator=generator), 1)
    log_q = torch.log_softmax(torch.randn(6, 5, generator=generator), 1)
    kl = torch.nn.functional.kl_div(log_q, p, reduction="none").sum(1)
    torch.testing.assert_close(alpha_divergence(p, log_q, 1.0), kl)
    for alpha in (-1.0, 1.0, 2.0):
        assert alpha_divergence(p, p.log(), alpha).abs().max() < 1e-5
        assert alpha_divergence(p, log_q, alpha).min() >= -1e-5


def test_both_distillation_losses_are_least_at_the_teacher() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(8, 5, generator=generator)
    targets = torch.softmax(teacher, 1)
    for kind in ("soft_ce", "alpha"):
        logits = teacher.clone().requires_grad_()
        distillation_loss(logits, targets, LossConfig(distillation=kind)).backward()
        assert logits.grad is not None
        assert logits.grad.abs().max() < 1e-4
        other = distillation_loss(teacher + 1.0 * torch.randn(8, 5, generator=generator), targets,
                                  LossConfig(distillation=kind))  # fmt: skip
        assert other > distillation_loss(teacher, targets, LossConfig(distillation=kind))
