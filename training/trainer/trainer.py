"""The training loop: one pass and one backward per subnet, one optimizer step.

A step:

1. The strategy's events: channels sorted, kernels cropped, a teacher frozen.
2. Its learning rate and its plan, the passes of this step; the batch, augmented.
3. What a model teaches that this step does not train: a frozen teacher, the average.
4. For each task of the plan, forward and backward on leading slices of the shared weights. The full
   model's comes first and its soft outputs teach the subnets of the same step (in-place
   distillation). Losses are scaled by the task's weight, so gradients simply add up in the shared
   parameters; nothing is cloned, but for AdamW while the ramp lasts (`adamw.py`). A pass is
   made in `passes.py`.
5. Gradients averaged over the processes, one step of the optimizer; none where fp16 overflowed.
6. A delay that looks at the loss is given it.

Everything random is keyed by the step, so the state to resume from is small: parameters, moments,
the step, and whether channels were sorted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from subnetact.device import device_name, has_fast_bf16
from supernet.definition import SupernetDefinition
from supernet.family import ChannelGroup
from supernet.subnets.extract import extract
from supernet.subnets.sort import (
    Permutations,
    importance_order,
    keeping_parity,
    permute_channels,
    rms_activations,
)
from training.config import TrainConfig
from training.data.augment import DrawKey, augment, mix
from training.data.data import drawn_batches, epoch_batches, steps_per_epoch
from training.data.samples import Dataset, Split
from training.strategies.make_strategy import make_strategy, total_steps
from training.strategies.strategy import Event, SubnetTask
from training.trainer.batch_shares import check_shares
from training.trainer.crop_kernels import crop_kernels
from training.trainer.distributed import ProcessGroup
from training.trainer.loss_scale import LossScale
from training.trainer.optimization import Optimization, Tensors
from training.trainer.pairs_training import PairsTraining
from training.trainer.passes import Passes
from training.trainer.resume import ResumeState, load_resume_state, save_resume_state
from training.trainer.run_log import EpochReport, RunLog, StepReport, mean
from training.trainer.shared_weights import SharedWeights
from training.trainer.work import training_macs

DIVERGED_FILE = "diverged.safetensors"
_SORT_BATCH, _SORT_SAMPLES = 8, 64  # on which activations are measured before sorting


class TrainingDivergedError(RuntimeError):
    """A loss is not finite; names the step, the subnet and the files to go on from."""


Progress = Callable[[StepReport], None]
EpochEnd = Callable[[int], Mapping[str, float]]


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
        workers: ProcessGroup | None = None,
        initial: Mapping[str, torch.Tensor] | None = None,
    ):
        """Prepare a run that writes into `out`; `workers` train together (default: alone).

        `initial` is a state_dict to start from instead of random weights. Raises ResumeError when
        `resume` is asked for and the saved state does not fit, ValueError for a device that is not
        there, or a batch that the workers can't share evenly.
        """
        device_name(config.device)  # refuses one that is not there, before anything is made
        self.config, self.data, self._out = config, data, out
        self._definition = definition
        self._largest = definition.space.largest
        self._steps_per_epoch = steps_per_epoch(data.train, config.data.batch_size)
        self.total_steps = total_steps(config, self._steps_per_epoch)
        self._strategy = make_strategy(config, definition, self._steps_per_epoch)
        self.weights = SharedWeights(
            definition,
            device=config.device,
            seed=config.seed,
            initial=initial,
            is_checkpointed=config.activation_checkpointing,
        )
        self._optimization = Optimization(self.weights.parameters, config.optimizer)
        self._pairs = PairsTraining(config, definition) if config.loss.features != "none" else None
        self._teacher: Tensors = {}
        self._workers = workers or ProcessGroup()
        check_shares(config.data.batch_size, self._workers.size)
        self._log = RunLog(out, tensorboard=config.log.tensorboard and self._workers.is_first)
        self.step = 0
        self.permutation: Permutations | None = None
        amp = _amp(config)
        self._scale = LossScale(is_on=amp == torch.float16)
        self._passes = Passes(config, definition, self.weights, self._pairs, self._scale, amp=amp)
        if resume:
            self._restore(load_resume_state(out, config))

    def run(
        self,
        *,
        progress: Progress | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        epoch_end: EpochEnd | None = None,
    ) -> bool:
        """Train until the end (True) or until `should_stop` says so (False), then save.

        State is saved at the start, at every epoch's end, and as `log.save_every_steps` says;
        `epoch_end` gets the number of epochs done and returns what else belongs in the log. Raises
        TrainingDivergedError on a loss that is not finite, SaveError when a state can't be written.
        """
        if self.step == 0:
            self.save()
        try:
            return self._run_epochs(progress, should_stop, epoch_end)
        finally:
            self._log.close()

    def _run_epochs(
        self,
        progress: Progress | None,
        should_stop: Callable[[], bool],
        epoch_end: EpochEnd | None,
    ) -> bool:
        while self.step < self.total_steps:
            started_s, started_cpu_s, reports = time.perf_counter(), time.process_time(), []
            for batch in self._batches():
                if self._workers.any(should_stop()):
                    self.save()
                    return False
                reports.append(self._train_step(batch))
                self._log.add_step(reports[-1])
                if progress is not None:
                    progress(reports[-1])
                if self._is_saved_now():
                    self.save()
            self.save()
            seconds = time.perf_counter() - started_s
            cpu_s = time.process_time() - started_cpu_s
            num_images = len(reports) * self.config.data.batch_size
            epoch = math.ceil(self.step / self._steps_per_epoch)
            if self._workers.is_first:
                also = dict(epoch_end(epoch)) if epoch_end else {}
                also |= self._pairs.figures() if self._pairs else {}
                also |= self._scale.figures()
                done = EpochReport(epoch, tuple(reports), seconds, cpu_s, num_images, also)
                self._log.add_epoch(done)
        return True

    def _is_saved_now(self) -> bool:
        """Whether the config asks for a state between two epochs' ends, after this step."""
        every = self.config.log.save_every_steps
        return bool(every) and self.step % every == 0

    def save(self, name: str | None = None) -> None:
        """Write the state to resume from, replacing the old one only when the new one is whole."""
        if not self._workers.is_first:
            return
        optimization, pairs = self._optimization.state(), self._pairs
        momentum, square = optimization.momentum, optimization.square
        state = ResumeState(
            step=self.step,
            permutation=self.permutation,
            strategy=self._strategy.state(),
            parameters=self._detached() | (pairs.detached() if pairs else {}),
            optimization=optimization._replace(
                momentum=momentum | pairs.state().momentum, square=square | pairs.state().square
            )
            if pairs
            else optimization,
            teacher=self._teacher,
            loss_scale=self._scale.state(),
        )
        save_resume_state(self._out, self.config, state, *([name] if name else []))

    def macs(self) -> float:
        """Multiply-accumulates of the whole run, forward and backward, of all processes."""
        size, total = self.config.data.batch_size, self.total_steps
        return training_macs(self._strategy, self._definition, total_steps=total, batch_size=size)

    def state(self) -> dict[str, torch.Tensor]:
        """The state_dict to evaluate and save: averaged weights if there are any."""
        return self.weights.state() | self._optimization.average

    def _batches(self):
        """What is left of the epoch that the next step is in, of the run's last one its part."""
        epoch, offset = divmod(self.step, self._steps_per_epoch)
        batches = epoch_batches(
            self.data.train,
            self.config.data.batch_size,
            self.config.seed,
            epoch,
            first=offset,
            part=self._workers.part,
            workers=self.config.data.workers,
            pin_memory=self.config.device.startswith("cuda"),
            alternating_flip=self.config.data.augmentation == "crop_alternating_flip",
        )
        left = self.total_steps - self.step
        return (batch for _, batch in zip(range(left), batches, strict=False))

    def _train_step(self, batch: Split) -> StepReport:
        # 1. what the strategy has to happen before this step
        for event in self._strategy.events(self.step):
            self._apply(event)
        # 2. its rate, its passes, and their batch
        lr, plan = self._strategy.lr(self.step), self._strategy.plan(self.step)
        images, labels = self._inputs(batch)
        # 3. what a model teaches that stands still meanwhile
        taught = self._passes.taught(images, plan, self._teacher, self._optimization.average)
        losses: list[torch.Tensor] = []
        full_gradients: Tensors | None = None
        self._optimization.zero_gradients()
        # 4. gradients of each pass, which add up in the shared weights
        for task in plan:
            loss, taught = self._passes.backward(task, images, labels, taught, self._key())
            losses.append(loss)
            if task.weight == 1.0 and self._is_ramped(plan):
                full_gradients = _gradients(self.weights.parameters)
        # 5. one step for all passes and processes
        values = self._finite(torch.stack(losses).tolist(), plan)
        self._update(lr, plan, full_gradients)
        self.step += 1
        by_labels = [v for v, task in zip(values, plan, strict=True) if task.target == "labels"]
        others = [v for v, task in zip(values, plan, strict=True) if task.target != "labels"]
        full_loss = by_labels[-1] if by_labels else None
        # 6. a delay ends when the full model's loss says so
        if self._strategy.watches_loss:
            assert full_loss is not None, "only the full model trains before shrinking"
            self._strategy.observe(self.step - 1, self._workers.mean(full_loss))
        return StepReport(self.step, self.total_steps, lr, full_loss, mean(others), len(plan))

    def _update(self, lr: float, plan: tuple[SubnetTask, ...], full: Tensors | None) -> None:
        """Turn the gradients of all processes into new weights, of pairs too."""
        pairs = list(self._pairs.parameters.values()) if self._pairs else []
        trained = [*self.weights.parameters.values(), *pairs]
        self._workers.average_gradients(trained)
        gradients = [p.grad for p in trained if p.grad is not None]
        if self._scale.unscale([*gradients, *(full or {}).values()]):
            self._optimization.step(lr, self._unweighted(full, plan))
        else:
            for parameter in pairs:
                parameter.grad = None
        if self._pairs:
            self._pairs.step(lr)

    def _is_ramped(self, plan: tuple[SubnetTask, ...]) -> bool:
        """Whether an optimizer that divides by the gradients' size must see them unweighted."""
        return self._optimization.is_adaptive and 0.0 < plan[-1].weight < 1.0

    @torch.no_grad()
    def _unweighted(self, full: Tensors | None, plan: tuple[SubnetTask, ...]) -> Tensors | None:
        """Gradients as they would be with weight 1 for every subnet: full + (sum - full) / beta."""
        if full is None:
            return None
        self._workers.average(list(full.values()))
        total, beta = _gradients(self.weights.parameters), plan[-1].weight
        return {name: full[name] + (total[name] - full[name]) / beta for name in total}

    def _finite(self, losses: list[float], plan: tuple[SubnetTask, ...]) -> list[float]:
        """The losses of a step, of which none may be infinite or NaN, on any process.

        All processes agree on it before weights change, so that all raise and none waits.
        """
        wrong = [(loss, t) for loss, t in zip(losses, plan, strict=True) if not math.isfinite(loss)]
        if not self._workers.any(bool(wrong)):
            return losses
        self.save(DIVERGED_FILE)
        said = "a loss on another process is not finite"
        if wrong:
            loss, task = wrong[0]
            said = f"the loss of subnet {task.arch.subnet_id} is {loss}"
        raise TrainingDivergedError(
            f"{said} at step {self.step}; lower optimizer.lr or look at the data. {self._out} "
            f"keeps the state before that step in {DIVERGED_FILE}, and the last saved for --resume"
        )

    def _apply(self, event: Event) -> None:
        if event == "sort_channels":
            self._sort_channels()
        elif event == "crop_kernels":
            crop_kernels(self._detached(), self._definition)
            if self._optimization.average:
                crop_kernels(self._optimization.average, self._definition)
        elif event == "find_front":
            archs = self._strategy.candidates
            losses = self._passes.losses(archs, self.data.train, self.data.input)
            # On every process the same, to the last bit.
            self._strategy.find_front([self._workers.mean(loss) for loss in losses])
        elif event == "freeze_teacher":
            source = self._optimization.average or self._detached()
            self._teacher = {name: t.clone() for name, t in source.items()}
        else:
            self._optimization.reset()

    def _detached(self) -> Tensors:
        return {name: p.detach() for name, p in self.weights.parameters.items()}

    def _key(self) -> DrawKey:
        return DrawKey(self.config.seed, self.step, self._workers.rank)

    def _inputs(self, batch: Split) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented inputs and labels on the device; labels are (B, K) shares where mixed.

        Of running text there is a label for every token, in one row after the other.
        """
        device, options = self.config.device, self.config.data
        x = augment(
            batch.images.to(device, non_blocking=True),
            self.data.input,
            self._largest.resolution,
            options,
            self._key(),
        )
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        labels = batch.labels.to(device, non_blocking=True).flatten()
        return mix(x, labels, self._definition.config.num_classes, options, self._key())

    def _sort_channels(self) -> None:
        """Put important channels first, everywhere that knows an order, once per run."""
        groups = self._definition.family.channel_groups(self._definition.config)
        order = importance_order(self._detached(), groups, self._activations(groups))
        if self.config.schedule.low_bit != "none":
            order = keeping_parity(order)  # by which low-bit weights have their signs
        moments = self._optimization.state()
        for tensors in (self._detached(), moments.momentum, moments.square, moments.average):
            permute_channels(tensors, groups, order)
        if self._teacher:
            permute_channels(self._teacher, groups, order)
        self.permutation = order

    def _activations(self, groups: Sequence[ChannelGroup]) -> dict[str, torch.Tensor] | None:
        """Sizes of activations for groups that are sorted by them, on drawn training samples."""
        if all(group.activations_at is None for group in groups):
            return None
        net = extract(self._detached(), self._definition, self._largest)
        batches = drawn_batches(self.data.train, _SORT_BATCH, _SORT_SAMPLES)
        device = self.config.device
        inputs = (
            self.data.input.as_served(b.images.to(device), self._largest.resolution)
            for b in batches
        )
        return rms_activations(net.to(device), groups, inputs)

    def _restore(self, state: ResumeState) -> None:
        with torch.no_grad():
            for name, parameter in self.weights.parameters.items():
                parameter.copy_(state.parameters[name])
        if self._pairs:
            state = self._pairs.restored(state)
        self._optimization.restore(state.optimization)
        # In the parameters' memory format: another layout is another kernel, and other last bits.
        like = self._detached()
        self._teacher = {n: torch.empty_like(like[n]).copy_(t) for n, t in state.teacher.items()}
        self.step, self.permutation = state.step, state.permutation
        self._scale.restore(state.loss_scale)
        if state.strategy:
            self._strategy.restore(state.strategy)


def _amp(config: TrainConfig) -> torch.dtype | None:
    """What forward passes compute in, None: float32."""
    if config.amp == "auto":
        return torch.bfloat16 if has_fast_bf16(config.device) else None
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[config.amp]


def _gradients(parameters: Mapping[str, torch.Tensor]) -> Tensors:
    """Copies of the gradients so far; zero where there is none."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in parameters.items()
    }
