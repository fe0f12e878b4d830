"""fp16: a loss scale keeps gradients in range, and a step that overflows is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from supernet.definition import define_supernet
from training.config import TrainConfig
from training.data.data import load_dataset
from training.trainer.loss_scale import FIRST, LossScale
from training.trainer.trainer import Trainer

AT_ONCE = {"delay": 0.0, "ramp_epochs": 0.0, "sort_channels": False}
Make = Callable[..., TrainConfig]


@pytest.fixture
def make_trainer(make_config: Make, tmp_path: Path) -> Callable[..., Trainer]:
    def make(amp: str, name: str = "out", *, resume: bool = False, **sections: object) -> Trainer:
        config = replace(make_config(**sections), amp=amp)
        (tmp_path / name).mkdir(exist_ok=True)
        definition = define_supernet(config.supernet.variant)
        return Trainer(config, definition, load_dataset("digits"), tmp_path / name, resume=resume)

    return make


def stop_after(steps: int) -> Callable[[], bool]:
    """Return a stop that lets so many steps be made."""
    asked = iter(range(steps + 1))
    return lambda: next(asked) == steps


def test_a_scale_halves_when_gradients_overflow_and_grows_when_they_do_not() -> None:
    scale = LossScale(is_on=True)
    gradients = [torch.full((2,), 3.0 * FIRST), torch.full((1,), FIRST)]
    assert scale.unscale(gradients)
    assert [g.tolist() for g in gradients] == [[3.0, 3.0], [1.0]]
    assert not scale.unscale([torch.tensor([1.0, float("inf")])])
    assert scale.value == FIRST / 2
    for _ in range(2_000):
        assert scale.unscale([torch.zeros(1)])
    assert scale.value == FIRST
    assert scale.figures() == {"loss_scale": FIRST, "steps_left_out": 1.0}


def test_without_fp16_there_is_none() -> None:
    scale = LossScale(is_on=False)
    assert scale.unscale([torch.tensor([float("nan")])])
    assert scale.value == 1.0
    assert not scale.figures()


def test_gradients_are_those_of_float32(make_trainer: Callable[..., Trainer]) -> None:
    def moves(amp: str, scale: float = 1.0) -> torch.Tensor:
        plain = {"schedule": AT_ONCE, "optimizer": {"weight_decay": 0.0}}
        trainer = make_trainer(amp, f"{amp}{scale:g}", **plain)
        trainer._scale.value = scale
        plan = trainer._strategy.plan
        trainer._strategy.plan = lambda step: tuple(  # as early in a ramp, gradients are small
            task._replace(weight=1e-5) for task in plan(step)
        )
        before = {n: p.detach().clone() for n, p in trainer.weights.parameters.items()}
        trainer.run(should_stop=stop_after(1))
        after = trainer.weights.parameters
        return torch.cat([(after[name].detach() - before[name]).flatten() for name in before])

    exact = moves("off")
    scaled, unscaled = (
        float((moves("fp16", scale) - exact).norm() / exact.norm()) for scale in (FIRST, 1.0)
    )
    assert scaled < 0.2
    assert unscaled > 0.8  # nearly all of them vanish


def test_a_step_that_overflows_changes_nothing_but_the_scale(
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = make_trainer("fp16", schedule=AT_ONCE)
    trainer._scale.value = 2.0**100
    before = {n: p.detach().clone() for n, p in trainer.weights.parameters.items()}
    trainer.run(should_stop=stop_after(1))
    assert trainer.step == 1
    assert trainer._scale.value == 2.0**99
    for name, parameter in trainer.weights.parameters.items():
        assert torch.equal(parameter, before[name]), name


def test_a_resumed_run_is_the_whole_one(make_trainer: Callable[..., Trainer]) -> None:
    whole, cut = make_trainer("fp16", "whole"), make_trainer("fp16", "cut")
    for trainer in (whole, cut):
        trainer._scale.value = 2.0**100
    whole.run(should_stop=stop_after(6))
    cut.run(should_stop=stop_after(3))
    resumed = make_trainer("fp16", "cut", resume=True)
    assert resumed._scale.state() == [2.0**97, 0, 3]
    resumed.run(should_stop=stop_after(3))
    assert resumed._scale.state() == whole._scale.state()
    for name, parameter in whole.weights.parameters.items():
        assert torch.equal(parameter, resumed.weights.parameters[name]), name
