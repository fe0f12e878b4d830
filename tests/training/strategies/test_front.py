"""Random subnets that are drawn from the front of what was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from supernet import Arch, cost, define_supernet
from training.config import ConfigError, TrainConfig
from training.data.data import load_dataset
from training.strategies.front import FrontSampler
from training.strategies.make_strategy import make_strategy
from training.strategies.sampling import UniformSampler
from training.trainer.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]
NET = define_supernet("resnet_tiny")


def macs_of(arch: Arch) -> int:
    return cost(NET, arch).macs


def sampler() -> FrontSampler:
    return FrontSampler(NET.space, 0, UniformSampler(NET.space, 0), macs_of)


def test_draws_are_the_other_samplers_until_a_front_is_found_and_then_its_members() -> None:
    drawn, plain = sampler(), UniformSampler(NET.space, 0)
    for step in range(20):
        assert drawn.draw(step, 1) == plain.draw(step, 1)
    assert not {NET.space.smallest, NET.space.largest} & set(drawn.candidates)
    assert set(drawn.candidates) >= set(NET.space.uniforms()[1:-1])
    # The loss falls with the work, but for one cheap arch that beats all and one that loses to all.
    order = sorted(drawn.candidates, key=macs_of)
    losses = {arch: 2.0 - macs_of(arch) / macs_of(order[-1]) for arch in order}
    best, worst = order[len(order) // 2], order[len(order) // 4]
    losses[best], losses[worst] = 0.5, 9.0
    drawn.find([losses[arch] for arch in drawn.candidates])
    assert drawn.front[-1] == best, "nothing dearer is better"
    assert worst not in drawn.front
    macs = [macs_of(arch) for arch in drawn.front]
    assert macs == sorted(set(macs))
    found = Counter(drawn.draw(step, slot) for step in range(400) for slot in (0, 1))
    assert set(found) == set(drawn.front)
    expected = 800 / len(drawn.front)
    assert all(0.4 * expected < count < 1.8 * expected for count in found.values())


def test_a_front_survives_a_saved_state() -> None:
    first, again = sampler(), sampler()
    first.find([float(i % 7) for i in range(len(first.candidates))])
    assert again.restore([*first.state(), 3.0, 4.0]) == [3.0, 4.0]
    assert again.front == first.front
    assert again.draw(11, 0) == first.draw(11, 0)
    with pytest.raises(ValueError, match=f"1 losses of {len(first.candidates)} candidates"):
        first.find([1.0])


def test_it_is_looked_for_once_and_not_before_the_ramp_has_ended(make_config: MakeConfig) -> None:
    strategy = make_strategy(make_config(schedule={"front": 0.75}), NET, 10)
    at = [step for step in range(40) if "find_front" in strategy.events(step)]
    assert at == [30]
    early = make_strategy(make_config(schedule={"front": 0.1}), NET, 10)
    at = [step for step in range(40) if "find_front" in early.events(step)]
    assert at == [25], "shrinking begins at 20, and its ramp takes half an epoch"
    assert not make_strategy(make_config(), NET, 10).candidates
    with pytest.raises(ConfigError, match=r"schedule.front is 0.5 with schedule.strategy single"):
        make_config(schedule={"front": 0.5, "strategy": "single"})


def test_a_run_stopped_after_its_front_was_found_resumes_to_the_same_weights(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(schedule={"front": 0.6, "delay": 0.2, "epochs": 2})
    data = load_dataset("digits")

    def trainer(name: str, *, resume: bool = False) -> Trainer:
        (tmp_path / name).mkdir(exist_ok=True)
        return Trainer(config, NET, data, tmp_path / name, resume=resume)

    whole, first = trainer("whole"), trainer("parts")
    assert whole.run()
    assert not first.run(should_stop=lambda: first.step == 13)
    second = trainer("parts", resume=True)
    assert second._strategy.state() == first._strategy.state()
    assert second._strategy.state()[0] > 1
    assert second.run()
    for name, tensor in whole.state().items():
        assert torch.equal(second.state()[name], tensor), name
    front = {task.arch for step in range(10, 16) for task in whole._strategy.plan(step)}
    known = {whole._strategy.candidates[int(i)] for i in whole._strategy.state()[1:]}
    assert front <= known | {NET.space.smallest, NET.space.largest}
