"""How much computing a run is: counted over sampled steps, against all of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from supernet import cost, define_supernet
from training.config import TrainConfig
from training.strategies.make_strategy import make_strategy
from training.trainer.work import training_macs

MakeConfig = Callable[..., TrainConfig]
NET = define_supernet("resnet_tiny")


def counted(config: TrainConfig, steps: int, size: int) -> float:
    strategy = make_strategy(config, NET, 10)
    return training_macs(strategy, NET, total_steps=steps, batch_size=size)


def test_a_network_alone_is_three_passes_of_every_sample(make_config: MakeConfig) -> None:
    config = make_config(schedule={"strategy": "single", "steps": 1000})
    whole = cost(NET, NET.space.largest).macs
    assert counted(config, 1000, 64) == pytest.approx(3 * whole * 64 * 1000)


@pytest.mark.parametrize("parts", [1, 3])
def test_a_sample_of_the_steps_tells_of_all(make_config: MakeConfig, parts: int) -> None:
    config = make_config(schedule={"steps": 240, "delay": 0.4, "parts": parts})
    strategy, exact = make_strategy(config, NET, 10), 0.0
    for step in range(240):
        for task in strategy.plan(step):
            rows = task.images(64)
            exact += 3 * cost(NET, task.arch).macs * (rows.stop - rows.start)
    assert counted(config, 240, 64) == pytest.approx(exact, rel=0.03)


def test_a_frozen_teacher_adds_its_own_pass(make_config: MakeConfig) -> None:
    sandwich = {"strategy": "sandwich", "steps": 100, "random_subnets": 0, "parts": 1}
    plain = make_config(schedule=sandwich)
    taught = make_config(schedule=sandwich, loss={"teacher": "frozen"})
    whole = cost(NET, NET.space.largest).macs
    more = counted(taught, 100, 8) - counted(plain, 100, 8)
    assert more == pytest.approx(whole * 8 * 100)
