"""The training loop: one pass and one backward per subnet, one optimizer step.

The full model's pass comes first and its soft outputs teach the subnets of the same step
(in-place distillation). Losses are scaled by the task's weight, so gradients simply add up in the
shared parameters; nothing is cloned. Everything random is keyed by the step, so the state to
resume from is small: parameters, momentum, the step, and whether channels were sorted.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch

from subnetact.device import has_fast_bf16
from supernet.definition import SupernetDefinition
from supernet.sort import Permutations, importance_order, permute_channels
from training.config import TrainConfig
from training.data import Dataset, Split, augment, epoch_batches, steps_per_epoch
from training.losses import distillation_loss, label_loss, soft_targets
from training.resume import ResumeState, load_resume_state, save_resume_state
from training.strategy import make_schedule, make_strategy
from training.weight_sharing import SharedWeights


class TrainingDivergedError(RuntimeError):
    """A loss is not finite; names the step and the subnet. The last saved state is kept."""


class StepReport(NamedTuple):
    """What one step did: losses are means over the batch, `num_subnets` counts all passes."""

    step: int
    total_steps: int
    lr: float
    full_loss: float
    subnet_loss: float | None
    num_subnets: int


Progress = Callable[[StepReport], None]


class Trainer:
    """Trains one supernet in one process; `run` returns whether it reached the end."""

    def __init__(
        self,
        config: TrainConfig,
        definition: SupernetDefinition,
        data: Dataset,
        out: Path,
        *,
        resume: bool = False,
    ):
        """Prepare a run that writes into `out`.

        Raises ResumeError when `resume` is asked for and the saved state does not fit.
        """
        self.config, self.data, self._out = config, data, out
        self._definition = definition
        self._resolution = definition.space.largest.resolution
        self._steps_per_epoch = steps_per_epoch(data.train, config.data.batch_size)
        self.total_steps = config.schedule.epochs * self._steps_per_epoch
        self._schedule = make_schedule(config, self._steps_per_epoch)
        self._strategy = make_strategy(config, definition.space, self._steps_per_epoch)
        self.weights = SharedWeights(definition, device=config.device, seed=config.seed)
        self._optimizer = self._make_optimizer()
        self.step = 0
        self.permutation: Permutations | None = None
        self._amp_bf16 = config.amp == "bf16" or (
            config.amp == "auto" and has_fast_bf16(config.device)
        )
        if resume:
            self._restore(load_resume_state(out, config))

    def run(
        self,
        *,
        progress: Progress | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train until the end (True) or until `should_stop` says so (False), then save.

        State is saved at every epoch's end. Raises TrainingDivergedError on a loss that is not
        finite.
        """
        epoch_start_s, losses = time.perf_counter(), []
        while self.step < self.total_steps:
            epoch, offset = divmod(self.step, self._steps_per_epoch)
            batches = epoch_batches(
                self.data.train, self.config.data.batch_size, self.config.seed, epoch
            )
            for i, batch in enumerate(batches):
                if i < offset:
                    continue  # done before the interruption
                if should_stop():
                    self.save()
                    return False
                report = self._train_step(batch)
                losses.append(report)
                if progress is not None:
                    progress(report)
            self.save()
            self._log_epoch(epoch, losses, time.perf_counter() - epoch_start_s)
            epoch_start_s, losses = time.perf_counter(), []
        return True

    def save(self) -> None:
        """Write the state to resume from, replacing the old one only when the new one is whole."""
        parameters = {name: p.detach() for name, p in self.weights.parameters.items()}
        state = ResumeState(self.step, self.permutation, parameters, self._momentum())
        save_resume_state(self._out, self.config, state)

    def _train_step(self, batch: Split) -> StepReport:
        if self.step == self._strategy.sort_step and self.permutation is None:
            self._sort_channels()
        optimizer, options = self._optimizer, self.config.optimizer
        lr = self._schedule.at(self.step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        images, labels = self._inputs(batch), batch.labels.to(self.config.device)
        targets: torch.Tensor | None = None
        losses: list[float] = []
        plan = self._strategy.plan(self.step)
        optimizer.zero_grad(set_to_none=True)
        for task in plan:
            with self._autocast():
                logits = self.weights.forward(task.arch, images)
            if task.target == "labels":
                loss = label_loss(logits, labels, options.label_smoothing)
                if len(plan) > 1:
                    targets = soft_targets(logits, options.temperature)
            else:
                assert targets is not None, "the full model's task comes first in every plan"
                loss = distillation_loss(logits, targets, options.temperature)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise TrainingDivergedError(
                    f"the loss of subnet {task.arch.subnet_id} is {losses[-1]} at step "
                    f"{self.step}; lower optimizer.lr or look at the data. The state of the last "
                    f"whole epoch is in {self._out}"
                )
            (loss * task.weight).backward()
        optimizer.step()
        self.step += 1
        subnet_loss = sum(losses[1:]) / len(losses[1:]) if losses[1:] else None
        return StepReport(self.step, self.total_steps, lr, losses[0], subnet_loss, len(plan))

    def _inputs(self, batch: Split) -> torch.Tensor:
        samples = batch.images.to(self.config.device)
        x = augment(
            samples,
            self.data.input,
            self._resolution,
            strength=self.config.data.augment,
            seed=self.config.seed,
            step=self.step,
        )
        return x.contiguous(memory_format=torch.channels_last)

    def _sort_channels(self) -> None:
        """Put important channels first: weights and momentum move together, once per run."""
        groups = self._definition.family.channel_groups(self._definition.config)
        weights = {name: p.detach() for name, p in self.weights.parameters.items()}
        order = importance_order(weights, groups)
        permute_channels(weights, groups, order)
        permute_channels(self._momentum(), groups, order)
        self.permutation = order

    def _momentum(self) -> dict[str, torch.Tensor]:
        states = self._optimizer.state
        return {
            name: states[p]["momentum_buffer"]
            for name, p in self.weights.parameters.items()
            if "momentum_buffer" in states[p]
        }

    def _make_optimizer(self) -> torch.optim.SGD:
        options = self.config.optimizer
        parameters = self.weights.parameters.values()
        return torch.optim.SGD(
            [
                {"params": [p for p in parameters if p.dim() > 1]},
                {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
            ],
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            nesterov=options.momentum > 0,
        )

    def _autocast(self) -> AbstractContextManager[object]:
        if not self._amp_bf16:
            return nullcontext()
        kind = torch.device(self.config.device).type
        return torch.autocast(kind, dtype=torch.bfloat16, cache_enabled=False)

    def _restore(self, state: ResumeState) -> None:
        with torch.no_grad():
            for name, parameter in self.weights.parameters.items():
                parameter.copy_(state.parameters[name])
                if name in state.momentum:
                    buffer = torch.empty_like(parameter).copy_(state.momentum[name])
                    self._optimizer.state[parameter]["momentum_buffer"] = buffer
        self.step, self.permutation = state.step, state.permutation

    def _log_epoch(self, epoch: int, reports: list[StepReport], seconds: float) -> None:
        subnet_losses = [r.subnet_loss for r in reports if r.subnet_loss is not None]
        line = {
            "epoch": epoch + 1,
            "step": self.step,
            "lr": reports[-1].lr,
            "full_loss": sum(r.full_loss for r in reports) / len(reports),
            "subnet_loss": sum(subnet_losses) / len(subnet_losses) if subnet_losses else None,
            "subnets_per_step": reports[-1].num_subnets,
            "seconds": round(seconds, 3),
        }
        with (self._out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
