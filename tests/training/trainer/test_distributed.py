"""Two gloo processes against one that accumulates the same micro-batches."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from supernet import define_supernet
from training.config import config_from_json
from training.data.data import Split, epoch_batches, load_dataset
from training.trainer.batch_shares import few_samples
from training.trainer.distributed import ProcessGroup
from training.trainer.run_log import StepReport
from training.trainer.trainer import DIVERGED_FILE, Trainer, TrainingDivergedError

STEPS = 20
BASE = {
    "name": "tiny",
    "threads": 1,
    "amp": "off",
    "data": {"batch_size": 128},
    "schedule": {"epochs": 4, "delay": 0.05, "ramp_epochs": 0.25},
}
VIT = {
    "resolution": 8, "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, "num_classes": 10,
    "in_channels": 1, "depth_choices": [1, 2], "heads_choices": [1, 2], "expand_choices": [1, 2],
}  # fmt: skip
CONFIGS = {
    "cnn": {**BASE, "supernet": {"variant": "resnet_tiny"}},
    # No BatchNorm and no augmentation: how a batch is shared out makes no difference, where the
    # ranks' rows can be cut into as many equal parts as the batch.
    "vit": {
        **BASE,
        "supernet": {"variant": "vit_tiny_patch16_224", "overrides": VIT},
        "data": {"batch_size": 126, "augment": 0.0},
    },
    "adamw": {
        **BASE,
        "supernet": {"variant": "vit_tiny_patch16_224", "overrides": VIT},
        "data": {"batch_size": 126, "augment": 0.0},
        "schedule": {"epochs": 4, "delay_rule": "plateau", "ramp_epochs": 1.0},
        "optimizer": {"name": "adamw", "lr": 1e-3, "eps": 1e-5, "clip_norm": 1.0},
    },
}


def trainer(name: str, out: Path, workers: ProcessGroup | None = None) -> Trainer:
    out.mkdir(exist_ok=True, parents=True)
    config = config_from_json(CONFIGS[name])
    definition = define_supernet(config.supernet.variant, **config.supernet.overrides)
    return Trainer(config, definition, load_dataset("digits"), out, workers=workers)


def stop_after(steps: int):
    remaining = iter(range(steps))
    return lambda: next(remaining, None) is None


def main(out: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    workers = ProcessGroup.from_torchrun(os.environ, "cpu")
    if names == ["diverging"]:
        diverge(out, workers)
        return
    for name in names:
        running = trainer(name, out / name / str(workers.rank), workers)
        running.run(should_stop=stop_after(STEPS))
        torch.save(weights_of(running), out / f"{name}{workers.rank}.pt")
    workers.close()


def diverge(out: Path, workers: ProcessGroup) -> None:
    """The second process alone sees a NaN, at step 3; both write down what was raised."""
    running = trainer("cnn", out / "diverging", workers)
    forward = running.weights.forward

    def broken(arch, x, *rest, **options):
        logits = forward(arch, x, *rest, **options)
        return logits * float("nan") if workers.rank == 1 and running.step == 3 else logits

    running.weights.forward = broken  # type: ignore[method-assign]
    try:
        running.run(should_stop=stop_after(STEPS))
    except TrainingDivergedError as error:
        (out / f"diverged{workers.rank}").write_text(str(error))
    workers.close()


def weights_of(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in run.weights.parameters.items()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train everything on two processes, once."""
    out = tmp_path_factory.mktemp("ranks")
    on_two_processes(out, *CONFIGS)
    return out


def on_two_processes(out: Path, *names: str) -> None:
    """Run `main` on two processes in the environment that torchrun makes, without its launcher."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(out), *names],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], errors


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_process_ends_all(tmp_path: Path) -> None:
    on_two_processes(tmp_path, "diverging")
    first, second = ((tmp_path / f"diverged{rank}").read_text() for rank in (0, 1))
    assert first.startswith("a loss on another process is not finite at step 3")
    assert second.startswith("the loss of subnet d2-w1-e1-r8 is nan at step 3")
    assert (tmp_path / "diverging" / DIVERGED_FILE).exists()


def test_processes_that_would_get_unequal_shares_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"batch_size is 128, which 3 processes can't share"):
        trainer("cnn", tmp_path, ProcessGroup(0, 3))


@pytest.mark.parametrize(
    ("name", "batch_size", "parts", "processes", "said"),
    [
        ("cnn", 128, 3, 1, ""),
        ("cnn", 64, 3, 1, "sees 21 samples a step"),
        ("cnn", 256, 3, 8, "sees 10 samples a step"),
        ("cnn", 256, 1, 8, ""),
        ("cnn", 16, 1, 1, ""),
        ("vit", 126, 3, 8, ""),
    ],
)
def test_too_few_samples_for_a_batch_norm_are_said(
    name: str, batch_size: int, parts: int, processes: int, said: str
) -> None:
    config = config_from_json(CONFIGS[name])
    config = replace(
        config,
        data=replace(config.data, batch_size=batch_size),
        schedule=replace(config.schedule, parts=parts),
    )
    definition = define_supernet(config.supernet.variant, **config.supernet.overrides)
    doubt = few_samples(config, definition, processes)
    assert said in doubt
    assert bool(doubt) == bool(said)


@pytest.mark.parametrize("name", CONFIGS)
def test_two_ranks_have_identical_parameters(ranks: Path, name: str) -> None:
    first, second = (torch.load(ranks / f"{name}{rank}.pt", weights_only=True) for rank in (0, 1))
    for parameter in first:
        assert torch.equal(first[parameter], second[parameter]), parameter


def test_two_ranks_equal_one_process_that_accumulates(ranks: Path, tmp_path: Path) -> None:
    first = torch.load(ranks / "cnn0.pt", weights_only=True)
    for name, tensor in _accumulate(tmp_path / "single").items():
        torch.testing.assert_close(first[name], tensor, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["vit", "adamw"])
def test_with_layer_norm_two_ranks_equal_the_run_on_the_whole_batch(
    ranks: Path, tmp_path: Path, name: str
) -> None:
    first = torch.load(ranks / f"{name}0.pt", weights_only=True)
    whole = trainer(name, tmp_path / "whole")
    reports: list[StepReport] = []
    whole.run(should_stop=stop_after(STEPS), progress=reports.append)
    assert len({report.num_subnets for report in reports}) == 2, "shrinking begins on the way"
    for parameter, tensor in weights_of(whole).items():
        torch.testing.assert_close(first[parameter], tensor, atol=1e-6, rtol=1e-6)


def _accumulate(out: Path) -> dict[str, torch.Tensor]:
    """Run the same steps in one process: both ranks' parts, gradients averaged before the step."""
    run = trainer("cnn", out)
    parts = [ProcessGroup(rank, 2) for rank in (0, 1)]
    optimization = run._optimization
    for batch in itertools.islice(_batches(run), STEPS):
        collected: dict[str, torch.Tensor] = {}
        step = optimization.step
        for part in parts:
            gradients = _gradients(
                run,
                part,
                Split(batch.images[part.part], batch.labels[part.part]),
                is_last=part is parts[-1],
            )
            for name, gradient in gradients.items():
                collected[name] = collected.get(name, torch.zeros_like(gradient)) + gradient / 2
        for name, parameter in run.weights.parameters.items():
            parameter.grad = collected[name]
        step(run._strategy.lr(run.step - 1))
    return weights_of(run)


def _batches(run: Trainer) -> Iterator[Split]:
    for epoch in itertools.count():
        yield from epoch_batches(run.data.train, 128, run.config.seed, epoch)


def _gradients(
    run: Trainer, part: ProcessGroup, batch: Split, *, is_last: bool
) -> dict[str, torch.Tensor]:
    """One rank's gradients, by the trainer's own step with the optimizer held still."""
    held, run._optimization.step = run._optimization.step, lambda _lr, _unweighted=None: None  # type: ignore[method-assign]
    run._workers = ProcessGroup(part.rank, 1)
    if part.rank:
        run.step -= 1
        run._strategy.events, events = (lambda _step: ()), run._strategy.events  # type: ignore[method-assign]
    run._train_step(batch)
    if part.rank:
        run._strategy.events = events  # type: ignore[method-assign]
    run._optimization.step = held  # type: ignore[method-assign]
    return {
        name: (torch.zeros_like(p) if p.grad is None else p.grad).detach().clone()
        for name, p in run.weights.parameters.items()
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])


def test_on_cuda_every_process_takes_the_gpu_of_its_local_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[object] = []
    monkeypatch.setattr("training.trainer.distributed.device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(
        "training.trainer.distributed.dist.init_process_group",
        lambda backend, device_id, timeout: calls.append((backend, device_id, timeout)),
    )
    monkeypatch.setattr("training.trainer.distributed.dist.get_rank", lambda: 5)
    monkeypatch.setattr("training.trainer.distributed.dist.get_world_size", lambda: 8)
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert ProcessGroup.from_torchrun(environment, "cuda") == ProcessGroup(5, 8)
    place = torch.device("cuda:1")
    assert calls == [place, ("nccl", place, timedelta(hours=6))], "the first may evaluate for long"
    with pytest.raises(ValueError, match="device is 'cuda:0', allowed under torchrun: cpu, cuda"):
        ProcessGroup.from_torchrun(environment, "cuda:0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no CUDA device is available; use cpu"):
        ProcessGroup.from_torchrun({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "cuda")
    config = config_from_json({**BASE, "supernet": {"variant": "resnet_tiny"}, "device": "cuda"})
    with pytest.raises(ValueError, match="no CUDA device is available; use cpu"):
        Trainer(config, define_supernet("resnet_tiny"), load_dataset("digits"), tmp_path)
