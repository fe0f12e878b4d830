"""The passes of a training step: forward and backward of each subnet, in micro-batches.

Gradients add up in the shared weights. A pass over more samples than `data.micro_batch_size` is cut
into micro-batches whose losses weigh as their shares: the same gradient, but that a BatchNorm's
statistics, and the attention of layer pairs, are each micro-batch's own. What the full model
teaches is kept for the whole batch; nothing else is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch

from supernet.arch import Arch
from supernet.definition import SupernetDefinition
from supernet.input import InputSpec
from training.config import TrainConfig
from training.data.augment import DrawKey
from training.data.data import drawn_batches
from training.data.samples import Samples
from training.strategies.strategy import SubnetTask
from training.trainer.batch_shares import micro_batches
from training.trainer.hidden_states import HiddenStates, hidden_loss
from training.trainer.loss_scale import LossScale
from training.trainer.losses import distillation_loss, label_loss, soft_targets
from training.trainer.optimization import Tensors
from training.trainer.pairs_training import PairsTraining
from training.trainer.shared_weights import SharedWeights

_DROPOUT = 6
_MEASURED, _MEASURED_AT_ONCE = 512, 128  # samples that losses are measured on


class StepTargets(NamedTuple):
    """What a step's subnets learn from besides labels, for all samples of the batch.

    (B, K) probabilities of the step's full model and of a model that stands still, and the hidden
    states of the latter.
    """

    full_model: torch.Tensor | None = None
    teacher: torch.Tensor | None = None
    hidden: HiddenStates = {}


class Passes:
    """Runs the passes of one process on one set of shared weights."""

    def __init__(
        self,
        config: TrainConfig,
        definition: SupernetDefinition,
        weights: SharedWeights,
        pairs: PairsTraining | None,
        scale: LossScale,
        *,
        amp: torch.dtype | None,
    ):
        """`amp`: what forward passes compute in, None: as the weights are."""
        self._config, self._weights, self._pairs = config, weights, pairs
        self._largest = definition.space.largest
        self._scale, self._amp = scale, amp

    def backward(
        self,
        task: SubnetTask,
        images: torch.Tensor,
        labels: torch.Tensor,
        taught: StepTargets,
        key: DrawKey,
    ) -> tuple[torch.Tensor, StepTargets]:
        """Add a task's gradients, times the loss scale, to the shared weights' own.

        `images` and `labels` are the whole batch's. Returned are the loss, a detached scalar, and
        what is taught from now on.
        """
        mine = task.images(len(images))
        dropout = self._dropout(task, len(images), key)
        losses: list[torch.Tensor] = []
        own: list[torch.Tensor] = []
        for rows in micro_batches(mine, self._config.data.micro_batch_size):
            share = (rows.stop - rows.start) / (mine.stop - mine.start)
            states: HiddenStates | None = {} if task.hidden or self._pairs else None
            with self.autocast():
                logits = self._weights.forward(
                    task.arch,
                    images[rows],
                    dropout=None if dropout is None else dropout[rows],
                    precision=task.precision,
                    hidden=states,
                )
            loss = self._loss(task, logits, labels, taught, rows)
            if states is not None and task.hidden:
                told = {name: taught.hidden[name][rows] for name in states}
                loss = loss + task.hidden * hidden_loss(states, told)
            if states is not None and self._pairs:
                loss = loss + self._pairs.loss(states, task, rows)
            losses.append(loss.detach().float() * share)
            if task.target == "labels":
                own.append(soft_targets(logits.flatten(0, -2), self._config.loss.temperature))
            (loss * (task.weight * share * self._scale.value)).backward()
        if own:
            taught = taught._replace(full_model=torch.cat(own))
        return torch.stack(losses).sum(), taught

    @torch.no_grad()
    def taught(
        self, images: torch.Tensor, plan: Iterable[SubnetTask], teacher: Tensors, average: Tensors
    ) -> StepTargets:
        """What a model that this step does not train teaches; nothing where none is asked for.

        `teacher` are a frozen teacher's parameters, `average` the averaged ones.
        """
        tasks = tuple(plan)
        asked = {task.target for task in tasks}
        if asked & {"teacher", "labels_and_teacher"}:
            parameters = teacher
        elif "full_model" in asked and self._config.loss.teacher == "average":
            parameters = average
        else:
            return StepTargets()
        targets: list[torch.Tensor] = []
        kept: dict[str, list[torch.Tensor]] = {}
        for rows in micro_batches(slice(0, len(images)), self._config.data.micro_batch_size):
            hidden: HiddenStates | None = {} if any(task.hidden for task in tasks) else None
            with self.autocast():
                logits = self._weights.forward(
                    self._largest, images[rows], parameters=parameters, hidden=hidden
                )
            targets.append(soft_targets(logits.flatten(0, -2), self._config.loss.temperature))
            for name, state in (hidden or {}).items():
                kept.setdefault(name, []).append(state)
        return StepTargets(
            None, torch.cat(targets), {name: torch.cat(s) for name, s in kept.items()}
        )

    @torch.no_grad()
    def losses(self, archs: Sequence[Arch], samples: Samples, spec: InputSpec) -> list[float]:
        """The mean loss of each arch, all on the same drawn samples, with the batch's statistics.

        Cheaper than accuracies of calibrated subnets, and less noisy: enough to tell which archs
        are worth training.
        """
        device = self._config.device
        totals, count = [0.0] * len(archs), 0
        for batch in drawn_batches(samples, _MEASURED_AT_ONCE, _MEASURED):
            labels = batch.labels.to(device).flatten()
            images = batch.images.to(device)
            count += len(images)
            for i, arch in enumerate(archs):
                with self.autocast():
                    logits = self._weights.forward(arch, spec.as_served(images, arch.resolution))
                loss = label_loss(logits.flatten(0, -2), labels, 0.0)
                totals[i] += float(loss) * len(images)
        return [total / count for total in totals]

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass: half precision where the run has it."""
        if self._amp is None:
            return nullcontext()
        kind = torch.device(self._config.device).type
        return torch.autocast(kind, dtype=self._amp, cache_enabled=False)

    def _loss(
        self,
        task: SubnetTask,
        logits: torch.Tensor,
        labels: torch.Tensor,
        taught: StepTargets,
        rows: slice,
    ) -> torch.Tensor:
        """The loss of (b, ..., K) logits of some `rows`; the rest is given for the whole batch."""
        options = self._config.loss
        each = logits[0].numel() // logits.shape[-1]  # rows of a sample: its tokens, or one
        logits = logits.flatten(0, -2)
        rows = slice(rows.start * each, rows.stop * each)
        if task.target == "labels":
            return label_loss(logits, labels[rows], options.label_smoothing)
        targets = taught.teacher if taught.teacher is not None else taught.full_model
        assert targets is not None, "the full model's task, or a frozen teacher, comes first"
        loss = distillation_loss(logits, targets[rows], options)
        if task.target == "labels_and_teacher":
            loss = loss + label_loss(logits, labels[rows], options.label_smoothing)
        return loss

    def _dropout(self, task: SubnetTask, batch_size: int, key: DrawKey) -> torch.Tensor | None:
        rate = self._config.loss.dropout
        if task.target != "labels" or rate == 0.0:
            return None
        return self._weights.dropout_mask(batch_size, rate, (*key, _DROPOUT))
