"""Training with low-bit weights: gradients straight through, who trains when, what is served."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from slackfit.policies import create_policy
from slackfit.simulation.simulate import simulate
from subnetact import load_executor, measure_profile
from supernet import Checkpoint, define_supernet, load_checkpoint
from supernet.low_bit.covered import low_bit_names
from supernet.low_bit.quantisers import QUANTISERS, quantise
from training import train
from training.commands.precision_command import precision
from training.config import ConfigError, TrainConfig
from training.data.data import load_dataset
from training.evaluation.low_bit import low_bit_alone, measure_low_bit
from training.strategies.make_strategy import make_strategy
from training.trainer.shared_weights import SharedWeights
from training.trainer.straight_through import StraightThrough
from training.trainer.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]


@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_gradients_go_straight_through_but_not_beyond_one(quantiser: str) -> None:
    latent = torch.tensor([[0.5, -0.2, 1.5, -1.5], [0.1, -0.9, 0.3, -1.0]], requires_grad=True)
    weight = StraightThrough.apply(latent, quantiser)
    assert torch.equal(weight, quantise(latent, quantiser).dequantised())
    (weight * torch.arange(8.0).view(2, 4)).sum().backward()
    assert latent.grad is not None
    assert latent.grad.tolist() == [[0, 1, 0, 0], [4, 5, 6, 7]]


def test_a_subnet_reads_slices_of_the_quantised_whole() -> None:
    """Quantising the slice would give other thresholds, and another weight at each width."""
    definition = define_supernet("resnet_tiny")
    weights = SharedWeights(definition, device="cpu", seed=0)
    arch = definition.space.smallest
    x = torch.randn(4, 1, 8, 8)
    state = {n: p.detach() for n, p in weights.parameters.items()}
    quantised = {
        n: quantise(state[n], "signed_binary").dequantised() for n in low_bit_names(definition)
    }
    expected = weights.forward(arch, x, parameters={**state, **quantised})
    torch.testing.assert_close(weights.forward(arch, x, precision="signed_binary"), expected)
    assert not torch.allclose(weights.forward(arch, x), expected)


def test_the_largest_learns_its_bits_from_the_start_and_a_drawn_one_with_shrinking(
    make_config: MakeConfig,
) -> None:
    """Float tasks are those of a run without them, and come first and in their order."""
    definition = define_supernet("resnet_tiny")
    with_it, without = (
        make_strategy(make_config(schedule={"low_bit": low_bit}), definition, 10)
        for low_bit in ("signed_binary", "none")
    )
    for step in range(40):
        tasks, floats = with_it.plan(step), without.plan(step)
        low = [task for task in tasks if task.precision != "fp32"]
        assert tuple(task for task in tasks if task not in low) == floats
        assert tasks[:2] == (floats[0], low[0])
        assert low[0].arch == definition.space.largest
        assert (low[0].weight, low[0].part) == (1.0, (0, 1))
        assert all(task.target == "full_model" for task in low)
        assert len(low) == (2 if len(floats) > 1 else 1)
        if len(low) > 1:
            assert low[1].weight == floats[-1].weight


def test_sorting_keeps_each_channel_s_sign(make_config: MakeConfig, tmp_path: Path) -> None:
    """What was learned in low bits before is the same network after."""
    definition = define_supernet("resnet_tiny")
    config = make_config(schedule={"low_bit": "signed_binary"})
    trainer = Trainer(config, definition, load_dataset("digits"), tmp_path)
    x = torch.randn(4, 1, 8, 8)
    largest = definition.space.largest
    before = trainer.weights.forward(largest, x, precision="signed_binary")
    weight = trainer.weights.parameters["layer2.0.conv1.weight"].clone()
    trainer._sort_channels()
    assert not torch.equal(trainer.weights.parameters["layer2.0.conv1.weight"], weight)
    after = trainer.weights.forward(largest, x, precision="signed_binary")
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_it_needs_a_full_model_to_learn_from(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="low_bit is ternary with schedule.strategy single"):
        make_config(schedule={"low_bit": "ternary", "strategy": "single"})


def trained_with(low_bit: str, out: Path) -> Checkpoint:
    from training.config import config_from_json

    config = config_from_json(
        {
            "name": "tiny",
            "threads": 1,
            "amp": "off",
            "supernet": {"variant": "resnet_tiny"},
            "data": {"batch_size": 64},
            "schedule": {
                "epochs": 12, "delay": 0.3, "ramp_epochs": 0.5, "parts": 1,
                "random_subnets": 1, "low_bit": low_bit,
            },
            "evaluation": {"calibration_images": 256, "random_archs": 0, "search": 0},
        }
    )  # fmt: skip
    checkpoint = train(config, out)
    assert checkpoint is not None
    return checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return trained_with("signed_binary", tmp_path_factory.mktemp("run"))


def test_a_run_ends_with_entries_that_are_served(trained: Checkpoint) -> None:
    assert [s.arch for s in trained.low_bit_subnets] == [s.arch for s in trained.subnets]
    form = trained.low_bit_subnets[-1]
    assert form.accuracy > 0.75, "a tenth of it is chance"
    executor = load_executor(trained)
    test = load_dataset("digits").test
    logits = np.concatenate(
        [executor.run(form.subnet_id, part.numpy()) for part in test.images.split(16)]
    )
    accuracy = float((logits.argmax(1) == test.labels.numpy()).mean())
    assert accuracy == pytest.approx(form.accuracy, abs=0.005), "served as it was measured"
    assert executor.launch(form.subnet_id, [test.images[:2].numpy()]).form == (
        "graph signed_binary"
    )


def test_a_profile_has_them_and_a_policy_chooses_one(trained: Checkpoint) -> None:
    """Its entry on a machine on which it alone is fast enough for the deadlines."""
    profile = measure_profile(load_executor(trained), trained, batch_sizes=(1,), repeats=1)
    assert set(profile.subnet_ids) == {form.subnet_id for form in trained.forms}
    form_id = trained.low_bit_subnets[-1].subnet_id
    assert profile.accuracy(form_id) == trained.low_bit_subnets[-1].accuracy
    quick = tuple(
        replace(s, latency_s={"p50": (0.001 if s.subnet_id == form_id else 0.1,)})
        for s in profile.subnets
    )
    profile = replace(profile, subnets=quick)
    policy = create_policy("slackfit", profile)
    outcomes = simulate(np.linspace(0.0, 1.0, 20), profile, policy, slo_s=0.01)
    assert {outcome.subnet_id for outcome in outcomes} == {form_id}


def test_training_the_axis_is_what_makes_it_accurate(trained: Checkpoint, tmp_path: Path) -> None:
    """Weights of the same training without the axis lose far more when they are quantised."""
    data = load_dataset("digits")
    accuracy = [
        measure_low_bit(each, data, "signed_binary", calibration_images=256)[-1].accuracy
        for each in (trained, trained_with("none", tmp_path))
    ]
    assert accuracy[0] > accuracy[1] + 0.1


def test_one_bit_weights_alone_are_a_checkpoint(trained: Checkpoint, tmp_path: Path) -> None:
    from supernet import save_checkpoint

    save_checkpoint(trained, tmp_path / "both")
    precision(
        checkpoint=tmp_path / "both", to="signed_binary", alone=tmp_path / "alone",
        calibration_images=256,
    )  # fmt: skip
    both, alone = load_checkpoint(tmp_path / "both"), load_checkpoint(tmp_path / "alone")
    assert [s.accuracy for s in alone.subnets] == [s.accuracy for s in both.low_bit_subnets]
    assert [s.accuracy for s in alone.low_bit_subnets] == [s.accuracy for s in alone.subnets]
    names = low_bit_names(alone.definition)
    files = {
        folder: (tmp_path / folder / "supernet.safetensors").stat().st_size
        for folder in ("both", "alone")
    }
    packed = sum(4 * both.state[name].numel() for name in names)
    assert files["both"] - files["alone"] >= packed
    images = load_dataset("digits").test.images[:8].numpy()
    form_id = alone.low_bit_subnets[-1].subnet_id
    served = load_executor(both).run(form_id, images)
    executor = load_executor(alone)
    np.testing.assert_allclose(executor.run(form_id, images), served, rtol=1e-4, atol=1e-4)
    twin = form_id.removesuffix("-sb")
    np.testing.assert_allclose(executor.run(twin, images), served, rtol=1e-4, atol=1e-4)


def test_alone_needs_entries(trained: Checkpoint) -> None:
    bare = trained.serving(trained.subnets, trained.norm_statistics, "")
    with pytest.raises(ValueError, match="no subnets with low-bit weights; make them with"):
        low_bit_alone(bare)


def test_what_loses_more_than_the_tolerance_is_not_offered(
    trained: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from supernet import save_checkpoint

    save_checkpoint(trained, tmp_path / "c")
    precision(checkpoint=tmp_path / "c", to="signed_binary", tolerance=0.0, calibration_images=64)
    offered = load_checkpoint(tmp_path / "c").low_bit_subnets
    assert len(offered) < len(trained.subnets)
    rows = json.loads((tmp_path / "c" / "accuracy.json").read_text())["subnets"]
    assert len(rows) == len(trained.subnets) + len(offered)
    with pytest.raises(SystemExit):
        precision(checkpoint=tmp_path / "c", alone=tmp_path / "alone")
    assert "--alone goes with --to signed_binary" in capsys.readouterr().err.replace("\n", " ")
