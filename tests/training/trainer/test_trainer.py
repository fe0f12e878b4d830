from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from supernet import define_supernet, extract, load_checkpoint
from training import train
from training.config import TrainConfig
from training.data.data import load_dataset
from training.evaluation.evaluate import is_correct
from training.run import OutputExistsError
from training.trainer.losses import distillation_loss, label_loss, soft_targets
from training.trainer.resume import ResumeError
from training.trainer.trainer import DIVERGED_FILE, Trainer, TrainingDivergedError

MakeConfig = Callable[..., TrainConfig]


def trainer_of(config: TrainConfig, out: Path, *, resume: bool = False) -> Trainer:
    out.mkdir(exist_ok=True)
    definition = define_supernet(config.supernet.variant)
    return Trainer(config, definition, load_dataset("digits"), out, resume=resume)


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.weights.parameters.items()}


def stop_after(steps: int) -> Callable[[], bool]:
    remaining = iter(range(steps))
    return lambda: next(remaining, None) is None


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_until_the_delay_ends_the_run_equals_full_model_training_bit_for_bit(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    delayed = trainer_of(make_config(), tmp_path / "deps")
    alone = trainer_of(make_config(schedule={"strategy": "single"}), tmp_path / "single")
    half = delayed.total_steps // 2
    for trainer in (delayed, alone):
        trainer.run(should_stop=stop_after(half))
    assert_same(weights_of(delayed), weights_of(alone))
    for trainer in (delayed, alone):
        trainer.run(should_stop=stop_after(1))
    assert not torch.equal(
        delayed.weights.parameters["conv1.weight"], alone.weights.parameters["conv1.weight"]
    )


def test_a_run_stopped_anywhere_resumes_to_the_same_weights(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config()
    whole = trainer_of(config, tmp_path / "whole")
    assert whole.run()
    for steps in (3, 19, 25):
        out = tmp_path / f"stopped{steps}"
        assert not trainer_of(config, out).run(should_stop=stop_after(steps))
        resumed = trainer_of(config, out, resume=True)
        assert resumed.step == steps
        assert resumed.run()
        assert_same(weights_of(resumed), weights_of(whole))
        assert resumed.permutation == whole.permutation


@pytest.mark.parametrize("strategy", ["progressive", "compound"])
def test_a_phased_run_with_an_average_resumes_to_the_same_weights(
    make_config: MakeConfig, tmp_path: Path, strategy: str
) -> None:
    config = make_config(schedule={"strategy": strategy}, optimizer={"ema_decay": 0.9})
    whole = trainer_of(config, tmp_path / "whole")
    assert whole.run()
    out = tmp_path / "stopped"
    assert not trainer_of(config, out).run(should_stop=stop_after(26))
    resumed = trainer_of(config, out, resume=True)
    assert resumed.run()
    assert_same(weights_of(resumed), weights_of(whole))
    assert_same(resumed._teacher, whole._teacher)
    assert_same(resumed.state(), whole.state())
    assert not torch.equal(whole.state()["fc.weight"], whole.weights.parameters["fc.weight"])


ADAMW = {"optimizer": {"name": "adamw", "lr": 0.002, "clip_norm": 1.0}, "loss": {"dropout": 0.2}}
PLATEAU = {
    "schedule": {"delay_rule": "plateau", "focus": 0.2, "parts": 3},
    "data": {"mixup": 0.2, "cutmix": 1.0},
}
AVERAGE = {"optimizer": {"ema_decay": 0.9}, "loss": {"teacher": "average", "distillation": "kl"}}


@pytest.mark.parametrize(
    ("sections", "steps"),
    [(ADAMW, 18), (PLATEAU, 7), (PLATEAU, 27), (AVERAGE, 20)],  # in the ramp, while it is open ...
)
def test_every_option_resumes_to_the_same_weights(
    make_config: MakeConfig, tmp_path: Path, sections: dict[str, dict[str, object]], steps: int
) -> None:
    config = make_config(**sections)
    whole = trainer_of(config, tmp_path / "whole")
    assert whole.run()
    assert not trainer_of(config, tmp_path / "stopped").run(should_stop=stop_after(steps))
    resumed = trainer_of(config, tmp_path / "stopped", resume=True)
    assert resumed.step == steps
    assert resumed.run()
    assert_same(weights_of(resumed), weights_of(whole))
    assert_same(resumed.state(), whole.state())


def test_a_state_saved_before_an_option_existed_still_resumes(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    config = make_config(schedule={"parts": 1})  # the one option whose default is another now
    trainer = trainer_of(config, tmp_path)
    trainer.run(should_stop=stop_after(9))
    path = tmp_path / "resume.safetensors"
    with safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["run"])
    for key in ("schedule.focus", "schedule.parts", "optimizer.name", "data.mixup"):
        section, name = key.split(".")
        del described["config"][section][name]
    del described["strategy"], described["num_updates"], described["config"]["log"]
    save_file(load_file(path), path, metadata={"run": json.dumps(described)})
    assert_same(weights_of(trainer_of(config, tmp_path, resume=True)), weights_of(trainer))
    with pytest.raises(ResumeError, match=r"schedule.parts: 1 then, 3 now"):
        trainer_of(make_config(), tmp_path, resume=True)


def test_a_budget_of_steps_ends_in_the_middle_of_an_epoch(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(schedule={"steps": 11, "delay": 0.5, "ramp_epochs": 0.25})
    trainer = trainer_of(config, tmp_path)
    reports = []
    assert trainer.run(progress=reports.append)
    assert [report.step for report in reports] == list(range(1, 12))
    assert [report.num_subnets for report in reports] == [1] * 6 + [4] * 5
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [8, 11]


def test_dropout_acts_in_the_full_models_pass_only(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(loss={"dropout": 0.5}, schedule={"delay": 0.0, "ramp_epochs": 0.0})
    trainer = trainer_of(config, tmp_path)
    masks: list[torch.Tensor | None] = []
    forward = trainer.weights.forward

    def spy(arch, x, dropout=None, **rest):
        masks.append(dropout)
        return forward(arch, x, dropout=dropout, **rest)

    trainer.weights.forward = spy  # type: ignore[method-assign]
    trainer.run(should_stop=stop_after(2))
    assert [mask is None for mask in masks] == [False, True, True, True] * 2
    first, second = masks[0], masks[4]
    assert first is not None
    assert second is not None
    assert set(first.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(first, second)
    assert 0.35 < first.bool().float().mean() < 0.65


def test_clipping_bounds_the_step(make_config: MakeConfig, tmp_path: Path) -> None:
    options = {"momentum": 0.0, "weight_decay": 0.0, "clip_norm": 1e-3}
    trainer = trainer_of(make_config(optimizer=options), tmp_path / "run")
    before = weights_of(trainer)
    trainer.run(should_stop=stop_after(1))
    moved = [trainer.weights.parameters[n].detach() - t for n, t in before.items()]
    norm = torch.stack([m.norm() for m in moved]).norm()
    assert float(norm) == pytest.approx(trainer._strategy.lr(0) * 1e-3, rel=1e-2)


@pytest.mark.parametrize("parts", [1, 3])
def test_the_gradient_of_a_step_is_the_weighted_sum_of_separate_gradients(
    make_config: MakeConfig, tmp_path: Path, parts: int
) -> None:
    schedule = {"delay": 0.0, "ramp_epochs": 1.0, "sort_channels": False, "parts": parts}
    config = make_config(optimizer={"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0},
                         schedule=schedule, data={"augment": 0.0})  # fmt: skip
    trainer = trainer_of(config, tmp_path / "run")
    before = weights_of(trainer)
    plan = trainer._strategy.plan(0)
    assert [task.target for task in plan] == ["labels"] + ["full_model"] * 3
    assert 0.0 < plan[1].weight < 1.0

    reference = trainer_of(config, tmp_path / "reference")
    from training.data.data import epoch_batches

    batch = next(epoch_batches(reference.data.train, 128, config.seed, 0))
    x = reference.data.input.normalise(batch.images, 8)
    x = x.contiguous(memory_format=torch.channels_last)
    targets = soft_targets(reference.weights.forward(plan[0].arch, x), 1.0)
    expected = {name: torch.zeros_like(p) for name, p in before.items()}
    thirds = [slice(0, 42), slice(42, 85), slice(85, 128)]
    seen = [slice(0, 128), *(thirds if parts == 3 else [slice(0, 128)] * 3)]
    for task, mine in zip(plan, seen, strict=True):
        logits = reference.weights.forward(task.arch, x[mine])
        loss = (
            label_loss(logits, batch.labels, 0.1)
            if task.target == "labels"
            else distillation_loss(logits, targets[mine], config.loss)
        )
        gradients = torch.autograd.grad(
            loss, list(reference.weights.parameters.values()), allow_unused=True
        )
        for name, gradient in zip(expected, gradients, strict=True):
            if gradient is not None:
                expected[name] += task.weight * gradient
    assert not trainer.run(should_stop=stop_after(1))
    lr = trainer._strategy.lr(0)
    for name, parameter in trainer.weights.parameters.items():
        torch.testing.assert_close(
            before[name] - parameter, lr * expected[name], atol=1e-5, rtol=1e-4
        )


def test_a_steps_gradient_is_zero_outside_the_union_of_its_slices(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    trainer = trainer_of(make_config(schedule={"strategy": "progressive"}), tmp_path / "run")
    definition = trainer._definition
    plan = next(
        plan
        for plan in map(trainer._strategy.plan, range(16, 32))
        if len({task.arch for task in plan}) > 1
        and definition.space.largest not in {task.arch for task in plan}
    )
    covered = {name: torch.zeros_like(p) for name, p in trainer.weights.parameters.items()}
    for task in plan:
        trainer.weights.forward(task.arch, torch.randn(4, 1, 8, 8)).sum().backward()
        for name, shape in definition.parameter_shapes(task.arch).items():
            covered[name][tuple(slice(n) for n in shape)] = 1.0
    assert any((mask == 0).any() for mask in covered.values())
    for name, parameter in trainer.weights.parameters.items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert (gradient * (1 - covered[name])).abs().max() == 0, name
    conv = trainer.weights.parameters["layer1.0.conv2.weight"].grad
    assert conv is not None
    assert (conv * covered["layer1.0.conv2.weight"]).abs().max() > 0


def test_training_writes_a_checkpoint_whose_accuracies_hold(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(schedule={"epochs": 10})
    checkpoint = train(config, tmp_path)
    assert checkpoint is not None
    loaded = load_checkpoint(tmp_path)
    assert loaded.subnets == checkpoint.subnets
    assert loaded.permutation is not None
    assert loaded.subnets[-1].accuracy > 0.7
    assert "359 test images that nothing was chosen on" in loaded.accuracy_source
    data = load_dataset("digits")
    for subnet in loaded.subnets:
        statistics = loaded.norm_statistics[subnet.subnet_id]
        net = extract(loaded.state, loaded.definition, subnet.arch, statistics)
        correct = int(is_correct(net, data.test, loaded.input, 8).sum())
        assert correct / len(data.test) == subnet.accuracy
    *lines, last = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert last["test_accuracy"] == {s.subnet_id: s.accuracy for s in loaded.subnets}
    on_validation = [last["accuracy"][s.subnet_id] for s in loaded.subnets]
    assert on_validation == sorted(on_validation), "the front of what was chosen on"
    uniforms = loaded.definition.space.uniforms()
    assert set(last["accuracy"]) >= {arch.subnet_id for arch in uniforms}
    assert [line["epoch"] for line in lines] == list(range(1, 11))
    assert all(line["images_per_s"] > 0 and line["cpu_s"] > 0 for line in lines)
    assert loaded.provenance["training_macs"] > 1e9
    images = lines[0]["images_per_s"] * lines[0]["seconds"]
    assert images == pytest.approx(lines[0]["step"] * config.data.batch_size, rel=0.02)
    assert lines[0]["subnets_per_step"] == 1
    assert lines[-1]["subnets_per_step"] == 4


def test_a_folder_with_a_run_is_not_overwritten(make_config: MakeConfig, tmp_path: Path) -> None:
    trainer_of(make_config(), tmp_path).save()
    with pytest.raises(OutputExistsError, match="pass --resume or choose another --out"):
        train(make_config(), tmp_path)


def test_resuming_with_another_config_names_the_difference(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    trainer_of(make_config(), tmp_path).save()
    with pytest.raises(ResumeError, match=r"optimizer.lr: 0.05 then, 0.1 now"):
        train(make_config(optimizer={"lr": 0.1}), tmp_path, resume=True)
    with pytest.raises(ResumeError, match="there is nothing to resume"):
        train(make_config(), tmp_path / "empty", resume=True)


def test_a_truncated_resume_file_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    trainer_of(make_config(), tmp_path).save()
    file = tmp_path / "resume.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ResumeError, match="not a whole resume file"):
        train(make_config(), tmp_path, resume=True)


def test_a_loss_that_is_not_finite_names_step_and_subnet_and_keeps_states(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(schedule={"delay": 0.0, "ramp_epochs": 0.0})
    trainer = trainer_of(config, tmp_path / "run")
    trainer.run(should_stop=stop_after(3))
    small = trainer._definition.space.smallest
    forward = trainer.weights.forward

    def broken(arch, x, *rest, **options):
        logits = forward(arch, x, *rest, **options)
        return logits * float("nan") if arch == small and trainer.step == 10 else logits

    trainer.weights.forward = broken  # type: ignore[method-assign]
    with pytest.raises(TrainingDivergedError, match=r"subnet d1-w0.5-e0.5-r8 is nan at step 10"):
        trainer.run()
    # The state before that step is whole, and so is the one of the last epoch's end.
    assert trainer_of(config, tmp_path / "run", resume=True).step == 8
    (tmp_path / "run" / DIVERGED_FILE).replace(tmp_path / "run" / "resume.safetensors")
    again = trainer_of(config, tmp_path / "run", resume=True)
    assert again.step == 10
    assert_same(weights_of(again), weights_of(trainer))


def test_a_supernet_that_does_not_fit_the_data_says_what_to_set(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(supernet={"overrides": {"num_classes": 7}})
    with pytest.raises(ValueError, match=r"set supernet.overrides.num_classes=10"):
        train(config, tmp_path)


def test_a_run_draws_its_curves_and_watches_three_subnets(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_config(log={"tensorboard": True}, evaluation={"every_epochs": 2})
    assert train(config, tmp_path) is not None
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"loss/full_model", "loss/subnets", "lr", "subnets_per_step"} <= set(tags)
    watched = [tag for tag in tags if tag.startswith("accuracy/")]
    assert len(watched) == 3
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [bool(set(watched) & set(line)) for line in lines[:4]] == [False, True, False, True]
    points = events.Scalars(watched[-1])
    assert [point.value for point in points] == pytest.approx(
        [line[watched[-1]] for line in lines[1:4:2]]
    )
