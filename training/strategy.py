"""Strategies as data: which subnets a step trains, from what, and with which weight.

The loop never changes; a strategy only answers `plan(step)`. The first task of a plan is always
the full model, so its outputs can teach the others in place.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from supernet.arch import Arch
from supernet.space import SearchSpace
from training.config import TrainConfig
from training.sampling import UniformSampler
from training.schedule import CosineSchedule, EpsilonRamp


class SubnetTask(NamedTuple):
    """One forward and backward pass of a step; `weight` scales its loss."""

    arch: Arch
    weight: float
    target: Literal["labels", "full_model"]


class Strategy(Protocol):
    """What the trainer asks before each step."""

    @property
    def sort_step(self) -> int | None:
        """The step before which channels are sorted, once; None: never."""
        ...

    def plan(self, step: int) -> tuple[SubnetTask, ...]:
        """The passes of a step, the full model's first."""
        ...


class SingleStrategy:
    """The full model alone, for the whole run."""

    sort_step: int | None = None

    def __init__(self, space: SearchSpace):
        self._full = (SubnetTask(space.largest, 1.0, "labels"),)

    def plan(self, step: int) -> tuple[SubnetTask, ...]:
        """The full model, from labels."""
        return self._full


class DepsStrategy:
    """Delayed epsilon-shrinking: full model alone, then max, min and random with a ramp."""

    def __init__(
        self, space: SearchSpace, ramp: EpsilonRamp, *, random_subnets: int, sort: bool, seed: int
    ):
        self._space, self._ramp, self._random_subnets = space, ramp, random_subnets
        self._sampler = UniformSampler(space, seed)
        self.sort_step: int | None = ramp.start_step if sort else None

    def plan(self, step: int) -> tuple[SubnetTask, ...]:
        """The full model from labels; once shrinking has begun, subnets from its outputs."""
        full = SubnetTask(self._space.largest, 1.0, "labels")
        weight = self._ramp.at(step)
        if weight == 0.0:
            return (full,)
        random_archs = [self._sampler.draw(step, slot) for slot in range(self._random_subnets)]
        subnets = [self._space.smallest, *random_archs]
        return (full, *(SubnetTask(arch, weight, "full_model") for arch in subnets))


def make_schedule(config: TrainConfig, steps_per_epoch: int) -> CosineSchedule:
    """The learning-rate schedule of a run."""
    return CosineSchedule(
        lr=config.optimizer.lr,
        min_lr=config.optimizer.min_lr,
        total_steps=config.schedule.epochs * steps_per_epoch,
        warmup_steps=round(config.optimizer.warmup_epochs * steps_per_epoch),
    )


def make_strategy(config: TrainConfig, space: SearchSpace, steps_per_epoch: int) -> Strategy:
    """The strategy that a config names."""
    if config.schedule.strategy == "single":
        return SingleStrategy(space)
    schedule = make_schedule(config, steps_per_epoch)
    start = round(config.schedule.delay * schedule.total_steps)
    ramp = EpsilonRamp(
        schedule=schedule,
        start_step=start,
        end_step=start + round(config.schedule.ramp_epochs * steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
    )
    return DepsStrategy(
        space,
        ramp,
        random_subnets=config.schedule.random_subnets,
        sort=config.schedule.sort_channels,
        seed=config.seed,
    )
