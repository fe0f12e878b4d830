"""Which random subnets a step trains: drawn from a private generator keyed by (seed, step, slot).

So every worker draws the same subnets without talking, and a resumed run draws what the
uninterrupted one would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from supernet.arch import Arch
from supernet.definition import SupernetDefinition
from supernet.space import SearchSpace
from supernet.subnets.cost import cost

_SUBNETS = 2
_BANK, _BINS = 160, 8
_BANK_SLOT = 1 << 20  # no slot of a step, so that the bank's draws are its own


class Sampler(Protocol):
    """Draws the arch of one slot of one step; the same arguments give the same arch."""

    def draw(self, step: int, slot: int) -> Arch: ...


class UniformSampler:
    """Every choice of the space independently and uniformly (DepS, OFA)."""

    def __init__(self, space: SearchSpace, seed: int):
        self._space, self._seed = space, seed

    def draw(self, step: int, slot: int) -> Arch:
        """Return the arch of one slot of one step."""
        return self._space.sample(_generator(self._seed, step, slot))


class SpreadSampler:
    """Sizes spread over the whole range: one dial per draw tilts all choices.

    Independent uniform choices average out, so nearly all draws are of middle size and the upper
    and lower middle hardly train. Here a dial t is uniform in 0 to 1, and each choice among n is
    the binomial(n - 1, t)-th: still every arch is possible, and sizes are about evenly spread.
    """

    def __init__(self, space: SearchSpace, seed: int):
        self._space, self._seed = space, seed

    def draw(self, step: int, slot: int) -> Arch:
        """Return the arch of one slot of one step."""
        rng = _generator(self._seed, step, slot)
        return self._space.sample(rng, tilt=rng.random())


class FlopsSampler:
    """MACs uniform between the smallest and the largest subnet (AttentiveNAS, CVPR 2021).

    Counting MACs takes milliseconds, so archs are drawn from a bank made once: tilted draws, sorted
    into bins of equal width in MACs. A draw takes a bin that is not empty, then an arch of it.
    """

    def __init__(self, space: SearchSpace, seed: int, macs_of: Callable[[Arch], int]):
        spread = SpreadSampler(space, seed)
        archs = dict.fromkeys(spread.draw(i, _BANK_SLOT) for i in range(_BANK))
        macs = {arch: macs_of(arch) for arch in archs}
        low = macs_of(space.smallest)
        width = max(1, macs_of(space.largest) - low) / _BINS
        bins: dict[int, list[Arch]] = {}
        for arch in archs:
            bins.setdefault(min(_BINS - 1, int((macs[arch] - low) / width)), []).append(arch)
        self._bins, self._seed = [bins[i] for i in sorted(bins)], seed

    def draw(self, step: int, slot: int) -> Arch:
        """Return the arch of one slot of one step."""
        rng = _generator(self._seed, step, slot)
        archs = self._bins[int(rng.integers(len(self._bins)))]
        return archs[int(rng.integers(len(archs)))]


class CompoundSampler:
    """One arch of the space's ladder, where dimensions grow together (CompOFA, ICLR 2021)."""

    def __init__(self, space: SearchSpace, seed: int):
        self._ladder, self._seed = space.ladder(), seed

    def draw(self, step: int, slot: int) -> Arch:
        """Return the arch of one slot of one step."""
        return self._ladder[int(_generator(self._seed, step, slot).integers(len(self._ladder)))]


class CyclingSampler:
    """All of a list of archs in turn: slot by slot, step by step."""

    def __init__(self, archs: Sequence[Arch], slots: int):
        self._archs, self._slots = archs, slots

    def draw(self, step: int, slot: int) -> Arch:
        """Return the arch of one slot of one step."""
        return self._archs[(step * self._slots + slot) % len(self._archs)]


def width_grid(space: SearchSpace) -> tuple[Arch, ...]:
    """Full depth, every uniform width: width, expand and heads together, ascending (DynaBERT)."""
    names = [name for name in ("width", "expand", "heads") if getattr(space, name)]
    levels = max((len(_choices(space, name)) for name in names), default=1)
    uniform = [
        {
            name: _choices(space, name)[_level(i, levels, len(_choices(space, name)))]
            for name in names
        }
        for i in range(levels)
    ]
    return tuple(dict.fromkeys(space.uniform(**values) for values in uniform))


def depth_width_grid(space: SearchSpace) -> tuple[Arch, ...]:
    """Every depth (the same in all stages) with every uniform width, ascending in width."""
    depths = sorted({depth for choices in space.depth for depth in choices})
    smallest = max(choices[0] for choices in space.depth)
    widths = [_uniform_values(space, arch) for arch in width_grid(space)]
    return tuple(
        dict.fromkeys(
            space.uniform(depth=depth, **values)
            for values in widths
            for depth in depths
            if depth >= smallest
        )
    )


SAMPLERS: dict[str, Callable[[SupernetDefinition, int], Sampler]] = {
    "uniform": lambda net, seed: UniformSampler(net.space, seed),
    "spread": lambda net, seed: SpreadSampler(net.space, seed),
    "flops": lambda net, seed: FlopsSampler(net.space, seed, lambda arch: cost(net, arch).macs),
    "compound": lambda net, seed: CompoundSampler(net.space, seed),
}


def _generator(seed: int, step: int, slot: int) -> np.random.Generator:
    return np.random.default_rng((seed, _SUBNETS, step, slot))


def _choices(space: SearchSpace, name: str) -> Sequence[float]:
    """The choices of the stage that has most."""
    stages = range(len(space.depth))
    per_stage = space.width if name == "width" else [space.block_choices(name, s) for s in stages]
    return max(per_stage, key=len)


def _level(index: int, levels: int, count: int) -> int:
    """Where level `index` of `levels` falls among `count` choices."""
    return round(index * (count - 1) / max(1, levels - 1))


def _uniform_values(space: SearchSpace, arch: Arch) -> dict[str, float]:
    names = [name for name in ("width", "expand", "heads") if getattr(space, name)]
    return {name: max(getattr(arch, name)) for name in names}
