"""Two gloo processes against one that accumulates the same micro-batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from supernet import define_supernet
from training.config import config_from_json
from training.data import Split, load_dataset
from training.distributed import Workers
from training.trainer import Trainer

STEPS = 6
CONFIG = {
    "name": "tiny",
    "threads": 1,
    "amp": "off",
    "supernet": {"variant": "resnet_tiny"},
    "data": {"batch_size": 128},
    "schedule": {"epochs": 4, "delay": 0.05, "ramp_epochs": 0.25},
}


def trainer(out: Path, workers: Workers | None = None) -> Trainer:
    out.mkdir(exist_ok=True)
    definition = define_supernet("resnet_tiny")
    return Trainer(
        config_from_json(CONFIG), definition, load_dataset("digits"), out, workers=workers
    )


def stop_after(steps: int):
    remaining = iter(range(steps))
    return lambda: next(remaining, None) is None


def main(out: Path) -> None:
    torch.set_num_threads(1)
    workers = Workers.from_torchrun(os.environ, "cpu")
    running = trainer(out / str(workers.rank), workers)
    running.run(should_stop=stop_after(STEPS))
    torch.save(
        {n: p.detach() for n, p in running.weights.parameters.items()}, out / f"{workers.rank}.pt"
    )
    workers.close()


def test_two_ranks_agree_and_equal_one_process_that_accumulates(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        __file__, str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, timeout=120, env=environment, capture_output=True)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name in first:
        assert torch.equal(first[name], second[name]), name
    single = _accumulate(tmp_path / "single")
    for name, tensor in single.items():
        torch.testing.assert_close(tensor, first[name], atol=1e-6, rtol=1e-5)


def _accumulate(out: Path) -> dict[str, torch.Tensor]:
    """Run the same steps in one process: both ranks' parts, gradients averaged before the step."""
    run = trainer(out)
    parts = [Workers(rank, 2) for rank in (0, 1)]
    optimization = run._optimization
    batches = _batches(run)
    for _ in range(STEPS):
        batch = next(batches)
        collected: dict[str, torch.Tensor] = {}
        step = optimization.step
        for part in parts:
            gradients = _gradients(run, part, part.share(batch), is_last=part is parts[-1])
            for name, gradient in gradients.items():
                collected[name] = collected.get(name, torch.zeros_like(gradient)) + gradient / 2
        for name, parameter in run.weights.parameters.items():
            parameter.grad = collected[name]
        step(run._strategy.lr(run.step - 1))
    return {name: p.detach() for name, p in run.weights.parameters.items()}


def _batches(run: Trainer):
    from training.data import epoch_batches

    return epoch_batches(run.data.train, 128, run.config.seed, 0)


def _gradients(
    run: Trainer, part: Workers, batch: Split, *, is_last: bool
) -> dict[str, torch.Tensor]:
    """One rank's gradients, by the trainer's own step with the optimizer held still."""
    held, run._optimization.step = run._optimization.step, lambda _lr: None  # type: ignore[method-assign]
    run._workers = Workers(part.rank, 1)
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
    main(Path(sys.argv[1]))
