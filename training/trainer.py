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
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch

from subnetact.device import has_fast_bf16
from supernet.definition import SupernetDefinition
from supernet.sort import Permutations, importance_order, permute_channels
from training.config import TrainConfig
from training.data import Dataset, Split, augment, epoch_batches, steps_per_epoch
from training.distributed import Workers
from training.losses import distillation_loss, label_loss, soft_targets
from training.optimization import Optimization
from training.resume import ResumeState, load_resume_state, save_resume_state
from training.strategy import Event, SubnetTask, make_strategy
from training.weight_sharing import SharedWeights


class TrainingDivergedError(RuntimeError):
    """A loss is not finite; names the step and the subnet. The last saved state is kept."""


class StepReport(NamedTuple):
    """What one step did: losses are means over the batch, `num_subnets` counts all passes.

    `full_loss` is None when the full model did not train, `subnet_loss` when it trained alone.
    """

    step: int
    total_steps: int
    lr: float
    full_loss: float | None
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
        workers: Workers | None = None,
    ):
        """Prepare a run that writes into `out`; `workers` train together (default: alone).

        Raises ResumeError when `resume` is asked for and the saved state does not fit.
        """
        self.config, self.data, self._out = config, data, out
        self._definition = definition
        self._resolution = definition.space.largest.resolution
        self._steps_per_epoch = steps_per_epoch(data.train, config.data.batch_size)
        self.total_steps = config.schedule.epochs * self._steps_per_epoch
        self._strategy = make_strategy(config, definition.space, self._steps_per_epoch)
        self.weights = SharedWeights(definition, device=config.device, seed=config.seed)
        self._optimization = Optimization(self.weights.parameters, config.optimizer)
        self._teacher: dict[str, torch.Tensor] = {}
        self._workers = workers or Workers()
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
                if self._workers.any(should_stop()):
                    self.save()
                    return False
                report = self._train_step(self._workers.share(batch))
                losses.append(report)
                if progress is not None:
                    progress(report)
            self.save()
            self._log_epoch(epoch, losses, time.perf_counter() - epoch_start_s)
            epoch_start_s, losses = time.perf_counter(), []
        return True

    def save(self) -> None:
        """Write the state to resume from, replacing the old one only when the new one is whole."""
        if not self._workers.is_first:
            return
        state = ResumeState(
            step=self.step,
            permutation=self.permutation,
            num_averaged=self._optimization.num_averaged,
            parameters=self._detached(),
            momentum=self._optimization.momentum(),
            average=self._optimization.average,
            teacher=self._teacher,
        )
        save_resume_state(self._out, self.config, state)

    def state(self) -> dict[str, torch.Tensor]:
        """The state_dict to evaluate and save: averaged weights if there are any."""
        return self.weights.state() | self._optimization.average

    def _train_step(self, batch: Split) -> StepReport:
        for event in self._strategy.events(self.step):
            self._apply(event)
        lr, plan = self._strategy.lr(self.step), self._strategy.plan(self.step)
        images, labels = self._inputs(batch), batch.labels.to(self.config.device)
        targets = self._frozen_targets(images, plan)
        full_loss: float | None = None
        subnet_losses: list[float] = []
        self._optimization.zero_gradients()
        for task in plan:
            with self._autocast():
                logits = self.weights.forward(task.arch, images)
            loss = self._loss(task, logits, labels, targets)
            value = self._finite(float(loss.detach()), task)
            if task.target == "labels":
                targets, full_loss = soft_targets(logits, self.config.loss.temperature), value
            else:
                subnet_losses.append(value)
            (loss * task.weight).backward()
        self._workers.average_gradients(self.weights.parameters.values())
        self._optimization.step(lr)
        self.step += 1
        return StepReport(
            self.step, self.total_steps, lr, full_loss, _mean(subnet_losses), len(plan)
        )

    def _loss(
        self,
        task: SubnetTask,
        logits: torch.Tensor,
        labels: torch.Tensor,
        targets: torch.Tensor | None,
    ) -> torch.Tensor:
        options = self.config.loss
        if task.target == "labels":
            return label_loss(logits, labels, options.label_smoothing)
        assert targets is not None, "the full model's task, or a frozen teacher, comes first"
        loss = distillation_loss(logits, targets, options)
        if task.target == "labels_and_teacher":
            loss = loss + label_loss(logits, labels, options.label_smoothing)
        return loss

    @torch.no_grad()
    def _frozen_targets(
        self, images: torch.Tensor, plan: tuple[SubnetTask, ...]
    ) -> torch.Tensor | None:
        """(B, K) probabilities of the frozen teacher, None when no task of the plan asks."""
        if not any(task.target == "labels_and_teacher" for task in plan):
            return None
        largest = self._definition.space.largest
        with self._autocast():
            logits = self.weights.forward(largest, images, parameters=self._teacher)
        return soft_targets(logits, self.config.loss.temperature)

    def _finite(self, loss: float, task: SubnetTask) -> float:
        if not math.isfinite(loss):
            raise TrainingDivergedError(
                f"the loss of subnet {task.arch.subnet_id} is {loss} at step {self.step}; lower "
                f"optimizer.lr or look at the data. The state of the last whole epoch is in "
                f"{self._out}"
            )
        return loss

    def _apply(self, event: Event) -> None:
        if event == "sort_channels":
            self._sort_channels()
        elif event == "freeze_teacher":
            self._teacher = {name: t.clone() for name, t in self._detached().items()}
        else:
            self._optimization.reset()

    def _detached(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self.weights.parameters.items()}

    def _inputs(self, batch: Split) -> torch.Tensor:
        samples = batch.images.to(self.config.device)
        x = augment(
            samples,
            self.data.input,
            self._resolution,
            kind=self.config.data.augmentation,
            strength=self.config.data.augment,
            seed=self.config.seed,
            step=self.step,
            rank=self._workers.rank,
        )
        return x.contiguous(memory_format=torch.channels_last)

    def _sort_channels(self) -> None:
        """Put important channels first, everywhere that knows an order, once per run."""
        groups = self._definition.family.channel_groups(self._definition.config)
        order = importance_order(self._detached(), groups)
        optimization = self._optimization
        for tensors in (self._detached(), optimization.momentum(), optimization.average):
            permute_channels(tensors, groups, order)
        if self._teacher:
            permute_channels(self._teacher, groups, order)
        self.permutation = order

    def _autocast(self) -> AbstractContextManager[object]:
        if not self._amp_bf16:
            return nullcontext()
        kind = torch.device(self.config.device).type
        return torch.autocast(kind, dtype=torch.bfloat16, cache_enabled=False)

    def _restore(self, state: ResumeState) -> None:
        with torch.no_grad():
            for name, parameter in self.weights.parameters.items():
                parameter.copy_(state.parameters[name])
        self._optimization.restore(state.momentum, state.average, state.num_averaged)
        # In the parameters' memory format: another layout is another kernel, and other last bits.
        like = self._detached()
        self._teacher = {n: torch.empty_like(like[n]).copy_(t) for n, t in state.teacher.items()}
        self.step, self.permutation = state.step, state.permutation

    def _log_epoch(self, epoch: int, reports: list[StepReport], seconds: float) -> None:
        if not self._workers.is_first:
            return
        line = {
            "epoch": epoch + 1,
            "step": self.step,
            "lr": reports[-1].lr,
            "full_loss": _mean([r.full_loss for r in reports]),
            "subnet_loss": _mean([r.subnet_loss for r in reports]),
            "subnets_per_step": reports[-1].num_subnets,
            "seconds": round(seconds, 3),
        }
        with (self._out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are there, None when none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
