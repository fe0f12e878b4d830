"""The full model alone, DepS, and the sandwich rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from supernet.arch import Arch
from supernet.space import SearchSpace
from training.strategies.delay import Delay
from training.strategies.front import FrontSampler
from training.strategies.sampling import Sampler
from training.strategies.schedule import EpsilonRamp, RateSchedule
from training.strategies.strategy import Event, StepwiseStrategy, SubnetTask, Target


class SingleStrategy(StepwiseStrategy):
    """One subnet alone, the full model for instance, for the whole run."""

    def __init__(self, arch: Arch, schedule: RateSchedule):
        self._full = (SubnetTask(arch, 1.0, "labels"),)
        self._schedule = schedule

    def lr(self, step: int) -> float:
        """Return the schedule's learning rate."""
        return self._schedule.at(step)

    def events(self, step: int) -> tuple[Event, ...]:
        """No events."""
        return ()

    def plan(self, step: int) -> tuple[SubnetTask, ...]:
        """That one, from labels."""
        return self._full


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrinking:
    """How subnets are let in: the ramp's length, how many, and the last steps without the full.

    `parts`: into how many parts a batch is cut, of which each smaller subnet sees one.
    `prepares`: channels are sorted, and small kernels cropped from large ones, at the beginning.
    `target`: what smaller subnets learn from, the full model of the step or a frozen copy of it.
    `full_target`: what the full model learns from. `front_step`: when the sampler, which is a
    `FrontSampler` then, is given the losses of its candidates; not before the ramp has ended.
    `low_bit`: the quantiser of the low-bit subnets, if any: the largest, on the whole batch from
    the first step on, since its signs have to be learned; with shrinking a drawn one as well.
    """

    ramp_steps: int
    steps_per_epoch: int
    random_subnets: int
    focus_steps: int = 0
    parts: int = 1
    prepares: tuple[Event, ...] = ()
    target: Target = "full_model"
    low_bit: str | None = None
    full_target: Target = "labels"
    front_step: int | None = None


class DepsStrategy:
    """Delayed epsilon-shrinking: full model alone, then max, min and random with a ramp.

    With a ramp that starts and ends at step 0 it is the sandwich rule of BigNAS (ECCV 2020). In
    the last `focus_steps` the full model is frozen as the teacher, and the others train on.
    """

    def __init__(
        self,
        space: SearchSpace,
        schedule: RateSchedule,
        sampler: Sampler,
        delay: Delay,
        shrinking: Shrinking,
    ):
        self._space, self._schedule, self._sampler = space, schedule, sampler
        self._delay, self._shrinking = delay, shrinking

    @property
    def watches_loss(self) -> bool:
        """True while it is open when shrinking begins."""
        return self._delay.start_step is None

    def observe(self, step: int, full_loss: float) -> None:
        """Forward the loss to the delay."""
        self._delay.observe(step, full_loss)

    def state(self) -> list[float]:
        """Return the front that was found, where one is looked for, and the delay's state."""
        found = self._sampler.state() if isinstance(self._sampler, FrontSampler) else []
        return [*found, *self._delay.state()]

    def restore(self, state: Sequence[float]) -> None:
        """Take back what `state` returned."""
        if isinstance(self._sampler, FrontSampler):
            state = self._sampler.restore(state)
        self._delay.restore(state)

    @property
    def candidates(self) -> tuple[Arch, ...]:
        """Those of the sampler that looks for a front."""
        return self._sampler.candidates if isinstance(self._sampler, FrontSampler) else ()

    def find_front(self, losses: Sequence[float]) -> None:
        """Forward the losses to the sampler."""
        assert isinstance(self._sampler, FrontSampler), "only it has candidates"
        self._sampler.find(losses)

    def lr(self, step: int) -> float:
        """Return the schedule's learning rate."""
        return self._schedule.at(step)

    def events(self, step: int) -> tuple[Event, ...]:
        """What shrinking begins with, sorted channels for instance; focus with a frozen teacher."""
        events = self._shrinking.prepares if step == self._delay.start_step else ()
        if step == self._front_step():
            events = (*events, "find_front")
        return (*events, "freeze_teacher") if step == self._focus_step() else events

    def plan(self, step: int) -> tuple[SubnetTask, ...]:
        """The full model; once shrinking has begun, subnets from its outputs."""
        full = SubnetTask(self._space.largest, 1.0, self._shrinking.full_target)
        weight = self._ramp().at(step)
        if weight == 0.0:
            return (full, *self._whole_low_bit("full_model"))
        focus = self._focus_step()
        if focus is not None and step >= focus:
            return (*self._whole_low_bit("teacher"), *self._smaller(step, 1.0, "teacher"))
        target = self._shrinking.target
        return (full, *self._whole_low_bit(target), *self._smaller(step, weight, target))

    def _whole_low_bit(self, target: Target) -> tuple[SubnetTask, ...]:
        """The largest subnet in low-bit weights, where they are trained; never ramped."""
        if self._shrinking.low_bit is None:
            return ()
        task = SubnetTask(self._space.largest, 1.0, target, precision=self._shrinking.low_bit)
        return (task,)

    def _smaller(self, step: int, weight: float, target: Target) -> tuple[SubnetTask, ...]:
        """The smallest subnet and drawn ones, the last in low-bit weights where they are trained.

        The parts go round, so each subnet sees all of them in the course of the steps.
        """
        count, low_bit = self._shrinking.random_subnets, self._shrinking.low_bit
        chosen = [(self._space.smallest, "fp32")]
        chosen += [(self._sampler.draw(step, slot), "fp32") for slot in range(count)]
        if low_bit is not None:
            chosen.append((self._sampler.draw(step, count), low_bit))
        parts = self._shrinking.parts
        return tuple(
            SubnetTask(arch, weight, target, part=((step + i) % parts, parts), precision=precision)
            for i, (arch, precision) in enumerate(chosen)
        )

    def _ramp(self) -> EpsilonRamp:
        """At most half of what is left: the subnets need steps at full weight too."""
        total = self._schedule.total_steps
        start = self._delay.start_step
        if start is None:
            start = total
        length = min(self._shrinking.ramp_steps, (total - start) // 2)
        return EpsilonRamp(
            schedule=self._schedule,
            start_step=start,
            end_step=start + length,
            steps_per_epoch=self._shrinking.steps_per_epoch,
        )

    def _front_step(self) -> int | None:
        """When the front is looked for; None without it."""
        if self._shrinking.front_step is None or self._delay.start_step is None:
            return None
        return max(self._shrinking.front_step, self._ramp().end_step)

    def _focus_step(self) -> int | None:
        """The first step of the focus, after the ramp; None without one."""
        if not self._shrinking.focus_steps or self._delay.start_step is None:
            return None
        first = self._schedule.total_steps - self._shrinking.focus_steps
        return max(first, self._ramp().end_step)
