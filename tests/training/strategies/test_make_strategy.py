from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from supernet import cost, define_supernet
from training.config import LossConfig, TrainConfig
from training.strategies.make_strategy import make_strategy
from training.strategies.sampling import SAMPLERS
from training.strategies.strategy import SubnetTask
from training.trainer.crop_kernels import crop_kernels
from training.trainer.losses import alpha_divergence, distillation_loss

DEFINITION = define_supernet("resnet20_cifar")
SPACE = DEFINITION.space
STEPS_PER_EPOCH = 10

MakeConfig = Callable[..., TrainConfig]


def strategy_of(make_config: MakeConfig, **schedule: object):
    config = make_config(schedule={"epochs": 60, **schedule})
    return make_strategy(config, DEFINITION, STEPS_PER_EPOCH)


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
    definition = define_supernet("resnet_tiny")
    first, again, other = (SAMPLERS[name](definition, seed) for seed in (0, 0, 1))
    drawn = [first.draw(step, slot) for step in range(50) for slot in range(2)]
    assert all(arch in definition.space for arch in drawn)
    assert drawn == [again.draw(step, slot) for step in range(50) for slot in range(2)]
    assert drawn != [other.draw(step, slot) for step in range(50) for slot in range(2)]


@pytest.mark.slow
def test_the_spread_sampler_covers_sizes_that_uniform_draws_miss() -> None:
    def macs(name: str) -> np.ndarray:
        sampler = SAMPLERS[name](DEFINITION, 0)
        return np.array([cost(DEFINITION, sampler.draw(step, 0)).macs for step in range(80)])

    low = cost(DEFINITION, SPACE.smallest).macs
    span = cost(DEFINITION, SPACE.largest).macs - low
    names = ("uniform", "spread", "flops")
    uniform, spread, flops = ((macs(name) - low) / span for name in names)
    assert np.mean(uniform > 0.6) < 0.05
    assert np.mean(spread > 0.6) > 0.15
    assert spread.std() > 1.5 * uniform.std()
    # Uniform in MACs: every quarter of the range gets about a quarter of the draws.
    quarters = np.histogram(flops, bins=4, range=(0, 1))[0] / len(flops)
    assert quarters == pytest.approx([0.25] * 4, abs=0.1)


def test_the_focus_trains_the_smaller_ones_from_the_frozen_full_model(
    make_config: MakeConfig,
) -> None:
    strategy = strategy_of(make_config, strategy="deps", delay=0.5, ramp_epochs=2, focus=0.25)
    assert strategy.events(450) == ("freeze_teacher",)
    assert strategy.plan(449)[0] == SubnetTask(SPACE.largest, 1.0, "labels")
    assert {task.target for task in strategy.plan(450)} == {"teacher"}
    assert SPACE.largest not in {task.arch for task in strategy.plan(599)}
    late = strategy_of(make_config, strategy="deps", delay=0.9, ramp_epochs=6, focus=0.5)
    # The ramp, at most half of what is left, comes first: 540 to 570.
    assert [late.plan(step)[0].target for step in (569, 570)] == ["labels", "teacher"]


def test_smaller_subnets_see_parts_of_the_batch_in_turn(make_config: MakeConfig) -> None:
    strategy = strategy_of(make_config, strategy="deps", delay=0.0, ramp_epochs=0, parts=2)
    parts = [[task.part for task in strategy.plan(step)] for step in (10, 11)]
    whole, first, second = (0, 1), (0, 2), (1, 2)
    assert parts == [[whole, first, second, first], [whole, second, first, second]]
    task = strategy.plan(10)[1]
    assert [task._replace(part=part).images(7) for part in (first, second)] == [
        slice(0, 3),
        slice(3, 7),
    ]
    assert [task._replace(part=(i, 3)).images(2) for i in range(3)] == [
        slice(0, 1),
        slice(1, 2),
        slice(0, 1),
    ]


def test_an_adaptive_delay_begins_when_the_loss_is_flat(make_config: MakeConfig) -> None:
    strategy = strategy_of(make_config, strategy="deps", delay_rule="plateau", ramp_epochs=1)
    for step in range(600):
        if strategy.watches_loss:
            strategy.observe(step, 2.0 - step / 200 if step < 260 else 0.7)
    # Windows of 30 steps: the one from 300 to 330 is the first that gains nothing.
    assert [len(strategy.plan(step)) for step in (329, 330, 599)] == [1, 4, 4]
    assert strategy.events(330) == ("sort_channels",)
    again = strategy_of(make_config, strategy="deps", delay_rule="plateau", ramp_epochs=1)
    again.restore(strategy.state())
    assert again.plan(330) == strategy.plan(330)


@pytest.mark.parametrize(("slope", "start"), [(-0.001, 450), (0.0, 150)])
def test_the_adaptive_delay_keeps_its_guard_rails(
    make_config: MakeConfig, slope: float, start: int
) -> None:
    strategy = strategy_of(make_config, strategy="deps", delay_rule="plateau", ramp_epochs=1)
    # An exponential fall never becomes flat in the sense of the rule; a constant is flat at once.
    for step in range(600):
        if strategy.watches_loss:
            strategy.observe(step, 2.0 + slope * step - (0.1 if slope == 0.0 and step > 29 else 0))
    assert strategy.events(start) == ("sort_channels",)


def test_phases_of_a_space_with_choices_per_stage_stay_inside_it(make_config: MakeConfig) -> None:
    definition = define_supernet("mobilenetv3_small_100")
    config = make_config(schedule={"strategy": "progressive", "epochs": 60})
    strategy = make_strategy(config, definition, STEPS_PER_EPOCH)
    assert any("crop_kernels" in strategy.events(step) for step in range(600))
    for step in range(0, 600, 7):
        assert all(task.arch in definition.space for task in strategy.plan(step))


def test_small_kernels_start_as_the_centre_of_the_large_one() -> None:
    definition = define_supernet("ofa_mobilenet_v3_w1.0")
    state = {n: torch.randn(s) for n, s in definition.parameter_shapes().items() if "conv_dw" in n}
    crop_kernels(state, definition)
    large, small = (state[f"blocks.1.conv_dw.{k}.weight"] for k in (7, 3))
    assert torch.equal(small, large[..., 2:5, 2:5])


def test_alpha_divergence_is_kl_at_one_and_zero_between_equals() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.softmax(torch.randn(6, 5, generator=generator), 1)
    log_q = torch.log_softmax(torch.randn(6, 5, generator=generator), 1)
    kl = torch.nn.functional.kl_div(log_q, p, reduction="none").sum(1)
    torch.testing.assert_close(alpha_divergence(p, log_q, 1.0), kl)
    near = torch.log_softmax(p.log() + 0.3 * torch.randn(6, 5, generator=generator), 1)
    for alpha in (-1.0, 1.0, 2.0):
        assert alpha_divergence(p, p.log(), alpha).abs().max() < 1e-5
        assert alpha_divergence(p, near, alpha).min() > 0, "no weight is large enough to be clipped"


# Worked out with Python's own arithmetic from the published formulas: five logits of a teacher that
# is sure of a class (9 above the others), of a student that is half-way there, and of one that is
# sure of another class.
TEACHER = [9.0, 0.0, 0.0, 0.0, 0.0]
STUDENTS = {"half-way": [2.0, 0.0, 1.0, 0.0, -1.0], "wrong": [0.0, 8.0, 0.0, 0.0, 0.0]}


def published(student: list[float], alpha: float) -> tuple[float, list[float]]:
    """AlphaNet's divergence and its gradient at the logits, by hand."""

    def softmax(logits: list[float]) -> list[float]:
        total = sum(math.exp(x) for x in logits)
        return [math.exp(x) / total for x in logits]

    p, q = softmax(TEACHER), softmax(student)
    base = 1 / (alpha * (alpha - 1)) if alpha != 1 else 0.0
    if alpha == 1:
        value = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        rho = [a / b for a, b in zip(p, q, strict=True)]
    else:
        weight = [min(5.0, (a / b) ** alpha) for a, b in zip(p, q, strict=True)]
        value = base * sum(b * (w - 1) for b, w in zip(q, weight, strict=True))
        rho = [w / alpha + base for w in weight]
    # d log q_i / d logit_k = [i = k] - q_k
    pull = [b * r for b, r in zip(q, rho, strict=True)]
    return value, [-a + b * sum(pull) for a, b in zip(pull, q, strict=True)]


@pytest.mark.parametrize("student", STUDENTS.values(), ids=STUDENTS)
@pytest.mark.parametrize("alpha", [-1.0, 1.0, 2.0])
def test_alpha_divergence_is_the_published_one_at_a_confident_teacher(
    student: list[float], alpha: float
) -> None:
    value, gradient = published(student, alpha)
    logits = torch.tensor([student], requires_grad=True)
    p = torch.softmax(torch.tensor([TEACHER]), 1)
    divergence = alpha_divergence(p, torch.log_softmax(logits, 1), alpha)
    divergence.sum().backward()
    assert divergence.item() == pytest.approx(value, rel=1e-4)
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx(gradient, rel=1e-3, abs=1e-5)
    assert logits.grad.norm() < 10.0, "no class dominates"


def test_the_alpha_loss_takes_the_larger_divergence_with_its_gradient() -> None:
    for student in STUDENTS.values():
        larger = max((published(student, alpha) for alpha in (-1.0, 1.0)), key=lambda pair: pair[0])
        logits = torch.tensor([student], requires_grad=True)
        options = LossConfig(distillation="alpha")
        loss = distillation_loss(logits, torch.softmax(torch.tensor([TEACHER]), 1), options)
        loss.backward()
        assert loss.item() == pytest.approx(larger[0], rel=1e-4)
        assert logits.grad is not None
        assert logits.grad[0].tolist() == pytest.approx(larger[1], rel=1e-3, abs=1e-5)


def test_the_alpha_loss_is_finite_where_probabilities_vanish() -> None:
    logits = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    targets = torch.softmax(torch.tensor([[-200.0, 0.0, 200.0]]), 1)
    loss = distillation_loss(logits, targets, LossConfig(distillation="alpha"))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_distillation_losses_are_least_at_the_teacher() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(8, 5, generator=generator)
    targets = torch.softmax(teacher, 1)
    for kind in ("soft_ce", "kl", "alpha"):
        logits = teacher.clone().requires_grad_()
        distillation_loss(logits, targets, LossConfig(distillation=kind)).backward()
        assert logits.grad is not None
        assert logits.grad.abs().max() < 1e-4
        other = distillation_loss(teacher + 1.0 * torch.randn(8, 5, generator=generator), targets,
                                  LossConfig(distillation=kind))  # fmt: skip
        assert other > distillation_loss(teacher, targets, LossConfig(distillation=kind))


def test_kl_has_the_gradient_of_the_soft_cross_entropy_and_scales_with_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, start = (torch.randn(8, 5, generator=generator) for _ in range(2))
    gradients = []
    for kind in ("soft_ce", "kl"):
        logits = start.clone().requires_grad_()
        options = LossConfig(distillation=kind, temperature=4.0)
        distillation_loss(logits, torch.softmax(teacher / 4.0, 1), options).backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    # tau^2 keeps the gradient's size: at a high temperature it is that of matched logits.
    centred = (start - start.mean(1, True)) - (teacher - teacher.mean(1, True))
    logits = start.clone().requires_grad_()
    hot = LossConfig(distillation="kl", temperature=1000.0)
    distillation_loss(logits, torch.softmax(teacher / 1000.0, 1), hot).backward()
    torch.testing.assert_close(logits.grad, centred / (8 * 5), atol=1e-4, rtol=0.05)
