"""Phased strategies: the full model first, then subnets from a frozen teacher (and labels).

OFA (Cai et al., ICLR 2020) opens kernel, depth and expand one after the other; CompOFA (ICLR 2021)
has one phase on archs whose dimensions grow together. The lengths are the published ones, scaled.
DynaBERT has one phase for widths and one for widths and depths.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

from supernet.space import SearchSpace
from training.config import TrainConfig
from training.strategies.sampling import (
    CompoundSampler,
    CyclingSampler,
    Sampler,
    UniformSampler,
    depth_width_grid,
    width_grid,
)
from training.strategies.schedule import RateSchedule
from training.strategies.strategy import Event, StepwiseStrategy, SubnetTask, Target


class Phase(NamedTuple):
    """A stretch of a phased run: its subnets, how many a step trains, its learning rate."""

    start_step: int
    sampler: Sampler | None
    subnets_per_step: int
    schedule: RateSchedule
    events: tuple[Event, ...]
    target: Target = "labels_and_teacher"
    hidden: float = 0.0


class PhasedStrategy(StepwiseStrategy):
    """Full model first; then, phase by phase, the phase's subnets from a frozen teacher."""

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
        """The full model in the first phase, then the phase's subnets."""
        phase = self._phase(step)
        if phase.sampler is None:
            return self._full
        archs = [phase.sampler.draw(step, slot) for slot in range(phase.subnets_per_step)]
        return tuple(SubnetTask(arch, 1.0, phase.target, phase.hidden) for arch in archs)

    def _phase(self, step: int) -> Phase:
        return next(p for p in reversed(self._phases) if step >= p.start_step)


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
_DYNABERT_SUBNETS = 4
_DYNABERT_HIDDEN = (0.1, 1.0)  # of the width phase, of the width and depth phase


def progressive(config: TrainConfig, space: SearchSpace, total: int) -> PhasedStrategy:
    """OFA's phases, as far as the space is elastic in them, scaled to the run's length."""
    elastic = [name for name in ("kernel", "depth", "expand") if is_elastic(space, name)]
    lengths = [_OFA_PHASES[name][0] for name in ("full", *elastic)]
    starts = _starts(lengths, total)
    phases = [_phase(config, 0, starts[1], None, 1, 1.0, ())]
    opened: set[str] = set()
    for name, (start, end) in zip(elastic, pairwise(starts[1:]), strict=True):
        events: tuple[Event, ...] = ("reset_optimizer",)
        if not opened:
            events = ("freeze_teacher", *events)
        if name == "kernel":
            events = ("crop_kernels", *events)
        if name == "expand" and config.schedule.sort_channels:
            events = ("sort_channels", *events)
        opened |= {"expand", "width", "heads"} if name == "expand" else {name}
        sampler = UniformSampler(_opened(space, opened), config.seed)
        rate = _OFA_PHASES[name][1]
        phases.append(_phase(config, start, end, sampler, _OFA_SUBNETS[name], rate, events))
    return PhasedStrategy(space, tuple(phases))


def compound(config: TrainConfig, space: SearchSpace, total: int) -> PhasedStrategy:
    """The full model, then one phase on the ladder (CompOFA)."""
    switch = _starts([_OFA_PHASES["full"][0], _COMPOUND[0]], total)[1]
    events: tuple[Event, ...] = ("freeze_teacher", "reset_optimizer")
    if config.schedule.sort_channels:
        events = ("sort_channels", *events)
    if is_elastic(space, "kernel"):
        events = ("crop_kernels", *events)
    sampler = CompoundSampler(space, config.seed)
    return PhasedStrategy(
        space,
        (
            _phase(config, 0, switch, None, 1, 1.0, ()),
            _phase(config, switch, total, sampler, 4, _COMPOUND[1], events),
        ),
    )


def dynabert(config: TrainConfig, space: SearchSpace, total: int) -> PhasedStrategy:
    """Fine-tune, sort once, all widths at full depth, then all depths too, a third of the run each.

    DynaBERT (Hou et al., NeurIPS 2020) trains all subnets in every step; here they take turns,
    four a step. Transformers, whose stream is as wide in every subnet, also learn the teacher's
    hidden states, at the published weights.
    """
    width, both, end = _starts([1, 1, 1], total)[1:]
    events: tuple[Event, ...] = ("freeze_teacher", "reset_optimizer")
    if config.schedule.sort_channels:
        events = ("sort_channels", *events)
    full = _phase(config, 0, width, None, 1, 1.0, ())
    widths = CyclingSampler(width_grid(space), _DYNABERT_SUBNETS)
    grid = CyclingSampler(depth_width_grid(space), _DYNABERT_SUBNETS)
    wide = _phase(config, width, both, widths, _DYNABERT_SUBNETS, 1.0, events)
    deep = _phase(config, both, end, grid, _DYNABERT_SUBNETS, 1.0, ("reset_optimizer",))
    has_one_stream = bool(space.heads) and not space.width
    hidden = _DYNABERT_HIDDEN if has_one_stream else (0.0, 0.0)
    phases = (
        phase._replace(target="teacher", hidden=weight)
        for phase, weight in zip((wide, deep), hidden, strict=True)
    )
    return PhasedStrategy(space, (full, *phases))


def _phase(
    config: TrainConfig,
    start: int,
    end: int,
    sampler: Sampler | None,
    subnets_per_step: int,
    rate: float,
    events: tuple[Event, ...],
) -> Phase:
    schedule = RateSchedule(
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


def is_elastic(space: SearchSpace, name: str) -> bool:
    """Whether a space offers a choice of depth, of kernel, or (expand) of any width."""
    stages = range(len(space.depth))
    if name == "depth":
        return any(len(choices) > 1 for choices in space.depth)
    if name == "kernel":
        return any(len(space.block_choices("kernel", s)) > 1 for s in stages if space.kernel)
    inner = (n for n in ("expand", "heads") if getattr(space, n))
    return any(len(space.block_choices(n, s)) > 1 for n in inner for s in stages) or any(
        len(choices) > 1 for choices in space.width
    )


def _opened(space: SearchSpace, opened: set[str]) -> SearchSpace:
    """Return the space with only the opened dimensions elastic; the others at their largest."""
    closed: dict[str, Any] = {}
    for name in ("depth", "width"):
        if name not in opened and getattr(space, name):
            closed[name] = tuple(choices[-1:] for choices in getattr(space, name))
    for name in ("expand", "kernel", "heads"):
        if name not in opened and getattr(space, name):
            stages = range(len(space.depth))
            closed[name] = tuple(tuple(space.block_choices(name, s)[-1:]) for s in stages)
    blocks = space.num_blocks
    if blocks and "depth" in closed:
        closed["num_blocks"] = tuple(counts[-1:] for counts in blocks)
    return replace(space, **closed)
