"""Strategies as data: which subnets a step trains, from what, with which weight and rate.

The loop never changes; a strategy only answers `lr(step)`, `events(step)` and `plan(step)`. Where
a plan distils in place, the full model's task comes first, so its outputs can teach the others.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

from supernet.arch import Arch
from supernet.space import SearchSpace
from training.config import TrainConfig
from training.sampling import SAMPLERS, CompoundSampler, Sampler, UniformSampler
from training.schedule import CosineSchedule, EpsilonRamp

Target = Literal["labels", "full_model", "labels_and_teacher"]
Event = Literal["sort_channels", "freeze_teacher", "reset_optimizer"]


class SubnetTask(NamedTuple):
    """One forward and backward pass of a step; `weight` scales its loss.

    `full_model` is the soft output of the step's first task, `labels_and_teacher` labels plus the
    soft output of the frozen teacher.
    """

    arch: Arch
    weight: float
    target: Target


class Strategy(Protocol):
    """What the trainer asks before each step; pure functions of the step."""

    def lr(self, step: int) -> float:
        """Learning rate of a step."""
        ...

    def events(self, step: int) -> tuple[Event, ...]:
        """What happens once, before a step."""
        ...

    def plan(self, step: int) -> tuple[SubnetTask, ...]:
        """The passes of a step."""
        ...


class SingleStrategy:
    """The full model alone, for the whole run."""

    def __init__(self, space: SearchSpace, schedule: CosineSchedule):
        self._full = (SubnetTask(space.largest, 1.0, "labels"),)
        self._schedule = schedule

    def lr(self, step: int) -> float:
        """The schedule's."""
        return self._schedule.at(step)

    def events(self, step: int) -> tuple[Event, ...]:
        """None."""
        return ()

    def plan(self, step: int) -> tuple[SubnetTask, ...]:
        """The full model, from labels."""
        return self._full


class DepsStrategy:
    """Delayed epsilon-shrinking: full model alone, then max, min and random with a ramp.

    With a ramp that starts and ends at step 0 it is the sandwich rule of BigNAS (ECCV 2020).
    """

    def __init__(
        self,
        space: SearchSpace,
        ramp: EpsilonRamp,
        sampler: Sampler,
        *,
        random_subnets: int,
        sort: bool,
    ):
        self._space, self._ramp, self._sampler = space, ramp, sampler
        self._random_subnets, self._sort = random_subnets, sort

    def lr(self, step: int) -> float:
        """The schedule's."""
        return self._ramp.schedule.at(step)

    def events(self, step: int) -> tuple[Event, ...]:
        """Channels are sorted when shrinking begins."""
        return ("sort_channels",) if self._sort and step == self._ramp.start_step else ()

    def plan(self, step: int) -> tuple[SubnetTask, ...]:
        """The full model from labels; once shrinking has begun, subnets from its outputs."""
        full = SubnetTask(self._space.largest, 1.0, "labels")
        weight = self._ramp.at(step)
        if weight == 0.0:
            return (full,)
        random_archs = [self._sampler.draw(step, slot) for slot in range(self._random_subnets)]
        subnets = [self._space.smallest, *random_archs]
        return (full, *(SubnetTask(arch, weight, "full_model") for arch in subnets))


class Phase(NamedTuple):
    """A stretch of a phased run: its subnets, how many a step trains, its learning rate."""

    start_step: int
    sampler: Sampler | None
    subnets_per_step: int
    schedule: CosineSchedule
    events: tuple[Event, ...]


class PhasedStrategy:
    """Full model first; then, phase by phase, random subnets from labels and a frozen teacher."""

    def __init__(self, space: SearchSpace, phases: tuple[Phase, ...]):
        self._full = (SubnetTask(space.largest, 1.0, "labels"),)
        self._phases = phases

    def lr(self, step: int) -> float:
        """The phase's own cosine."""
        phase = self._phase(step)
        return phase.schedule.at(step - phase.start_step)

    def events(self, step: int) -> tuple[Event, ...]:
        """What the phase that begins here asks for."""
        phase = self._phase(step)
        return phase.events if step == phase.start_step else ()

    def plan(self, step: int) -> tuple[SubnetTask, ...]:
        """The full model in the first phase, then the phase's random subnets."""
        phase = self._phase(step)
        if phase.sampler is None:
            return self._full
        archs = [phase.sampler.draw(step, slot) for slot in range(phase.subnets_per_step)]
        return tuple(SubnetTask(arch, 1.0, "labels_and_teacher") for arch in archs)

    def _phase(self, step: int) -> Phase:
        return next(p for p in reversed(self._phases) if step >= p.start_step)


def make_strategy(config: TrainConfig, space: SearchSpace, steps_per_epoch: int) -> Strategy:
    """The strategy that a config names."""
    options = config.schedule
    total = options.epochs * steps_per_epoch
    schedule = CosineSchedule(
        lr=config.optimizer.lr,
        min_lr=config.optimizer.min_lr,
        total_steps=total,
        warmup_steps=round(config.optimizer.warmup_epochs * steps_per_epoch),
    )
    if options.strategy == "single":
        return SingleStrategy(space, schedule)
    if options.strategy == "compound":
        return _compound(config, space, total)
    if options.strategy == "progressive":
        return _progressive(config, space, total)
    is_deps = options.strategy == "deps"
    start = round(options.delay * total) if is_deps else 0
    length = round(options.ramp_epochs * steps_per_epoch) if is_deps else 0
    ramp = EpsilonRamp(
        schedule=schedule,
        start_step=start,
        end_step=start + length,
        steps_per_epoch=steps_per_epoch,
    )
    return DepsStrategy(
        space,
        ramp,
        SAMPLERS[options.sampler](space, config.seed),
        random_subnets=options.random_subnets,
        sort=options.sort_channels and is_deps,
    )


# Epochs of OFA's phases (full model, kernel, depth, expand) and their learning rates relative to
# the full model's 2.6 (Cai et al., ICLR 2020, and its released script); the two stages of a phase
# are one here. CompOFA replaces the last three by one phase of 150 epochs.
_OFA_PHASES = {
    "full": (180, 1.0),
    "kernel": (125, 0.37),
    "depth": (150, 0.09),
    "expand": (150, 0.09),
}
_OFA_SUBNETS = {"kernel": 1, "depth": 2, "expand": 4}
_COMPOUND = (150, 0.09)


def _progressive(config: TrainConfig, space: SearchSpace, total: int) -> PhasedStrategy:
    elastic = [name for name in ("kernel", "depth", "expand") if _is_elastic(space, name)]
    lengths = [_OFA_PHASES[name][0] for name in ("full", *elastic)]
    starts = _starts(lengths, total)
    phases = [_phase(config, 0, starts[1], None, 1, 1.0, ())]
    opened: set[str] = set()
    for name, (start, end) in zip(elastic, pairwise(starts[1:]), strict=True):
        events: tuple[Event, ...] = ("reset_optimizer",)
        if not opened:
            events = ("freeze_teacher", *events)
        if name == "expand" and config.schedule.sort_channels:
            events = ("sort_channels", *events)
        opened |= {"expand", "width", "heads"} if name == "expand" else {name}
        sampler = UniformSampler(_opened(space, opened), config.seed)
        rate = _OFA_PHASES[name][1]
        phases.append(_phase(config, start, end, sampler, _OFA_SUBNETS[name], rate, events))
    return PhasedStrategy(space, tuple(phases))


def _compound(config: TrainConfig, space: SearchSpace, total: int) -> PhasedStrategy:
    switch = _starts([_OFA_PHASES["full"][0], _COMPOUND[0]], total)[1]
    events: tuple[Event, ...] = ("freeze_teacher", "reset_optimizer")
    if config.schedule.sort_channels:
        events = ("sort_channels", *events)
    sampler = CompoundSampler(space, config.seed)
    return PhasedStrategy(
        space,
        (
            _phase(config, 0, switch, None, 1, 1.0, ()),
            _phase(config, switch, total, sampler, 4, _COMPOUND[1], events),
        ),
    )


def _phase(
    config: TrainConfig,
    start: int,
    end: int,
    sampler: Sampler | None,
    subnets_per_step: int,
    rate: float,
    events: tuple[Event, ...],
) -> Phase:
    schedule = CosineSchedule(
        lr=config.optimizer.lr * rate,
        min_lr=config.optimizer.min_lr * rate,
        total_steps=max(1, end - start),
    )
    return Phase(start, sampler, subnets_per_step, schedule, events)


def _starts(lengths: list[int], total: int) -> list[int]:
    """First steps of phases whose lengths are in proportion, and the end."""
    passed = 0
    starts = [0]
    for length in lengths:
        passed += length
        starts.append(round(total * passed / sum(lengths)))
    return starts


def _is_elastic(space: SearchSpace, name: str) -> bool:
    if name == "depth":
        return any(len(choices) > 1 for choices in space.depth)
    if name == "kernel":
        return len(space.kernel) > 1
    return len(space.expand) > 1 or len(space.heads) > 1 or any(len(c) > 1 for c in space.width)


def _opened(space: SearchSpace, opened: set[str]) -> SearchSpace:
    """Return the space with only the opened dimensions elastic; the others at their largest."""
    closed: dict[str, object] = {}
    for name in ("depth", "width"):
        if name not in opened and getattr(space, name):
            closed[name] = tuple(choices[-1:] for choices in getattr(space, name))
    for name in ("expand", "kernel", "heads"):
        if name not in opened and getattr(space, name):
            closed[name] = getattr(space, name)[-1:]
    return replace(space, **closed)  # type: ignore[arg-type]
