"""Strategies as data: which subnets a step trains, from what, with which weight and rate.

The loop never changes; a strategy only answers what `Strategy` asks. Where a plan
distils in place, the full model's task comes first, so its outputs can teach the others.
"""

from __future__ import annotations

from supernet.arch import Arch
from supernet.definition import SupernetDefinition
from supernet.space import SearchSpace
from supernet.spec import parse_arch
from supernet.subnets.cost import cost
from training.config import TrainConfig
from training.strategies.delay import FixedDelay, PlateauDelay
from training.strategies.deps import DepsStrategy, Shrinking, SingleStrategy
from training.strategies.front import FrontSampler
from training.strategies.phases import compound, dynabert, is_elastic, progressive
from training.strategies.sampling import SAMPLERS
from training.strategies.schedule import RateSchedule
from training.strategies.strategy import Event, Strategy

_PHASED = {"progressive": progressive, "compound": compound, "dynabert": dynabert}


def make_strategy(
    config: TrainConfig, definition: SupernetDefinition, steps_per_epoch: int
) -> Strategy:
    """The strategy that a config names."""
    options, space = config.schedule, definition.space
    total = total_steps(config, steps_per_epoch)
    schedule = RateSchedule(
        lr=config.optimizer.lr,
        min_lr=config.optimizer.min_lr,
        decay=config.optimizer.decay,
        total_steps=total,
        warmup_steps=round(config.optimizer.warmup_epochs * steps_per_epoch),
    )
    alone = trained_alone(config, space)
    if alone is not None:
        return SingleStrategy(alone, schedule)
    if options.strategy in _PHASED:
        return _PHASED[options.strategy](config, space, total)
    is_deps = options.strategy == "deps"
    crop: tuple[Event, ...] = ("crop_kernels",) if is_elastic(space, "kernel") else ()
    sort: tuple[Event, ...] = ("sort_channels",) if options.sort_channels else ()
    is_frozen = config.loss.teacher == "frozen"
    freeze: tuple[Event, ...] = ("freeze_teacher",) if is_frozen else ()
    shrinking = Shrinking(
        ramp_steps=round(options.ramp_epochs * steps_per_epoch) if is_deps else 0,
        steps_per_epoch=steps_per_epoch,
        random_subnets=options.random_subnets,
        focus_steps=round(options.focus * total),
        parts=options.parts,
        prepares=(*(crop + sort if is_deps else ()), *freeze),
        target="teacher" if is_frozen else "full_model",
        low_bit=None if options.low_bit == "none" else options.low_bit,
        full_target=config.loss.full_model,
        front_step=round(options.front * total) if options.front else None,
    )
    if is_deps and options.delay_rule == "plateau":
        delay = PlateauDelay(total)
    else:
        delay = FixedDelay(round(options.delay * total) if is_deps else 0)
    sampler = SAMPLERS[options.sampler](definition, config.seed)
    if options.front:
        sampler = FrontSampler(space, config.seed, sampler, lambda a: cost(definition, a).macs)
    return DepsStrategy(space, schedule, sampler, delay, shrinking)


def trained_alone(config: TrainConfig, space: SearchSpace) -> Arch | None:
    """The one subnet that a run trains; None where there are several.

    Raises ValueError naming what is wrong in `schedule.subnet`.
    """
    if config.schedule.strategy != "single":
        return None
    return parse_arch(config.schedule.subnet or "largest", space)


def total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run."""
    return config.schedule.steps or config.schedule.epochs * steps_per_epoch
