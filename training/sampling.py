"""Which random subnets a step trains: drawn from a private generator keyed by (seed, step, slot).

So every worker draws the same subnets without talking, and a resumed run draws what the
uninterrupted one would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from supernet.arch import Arch
from supernet.space import SearchSpace

_SUBNETS = 2


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


class CompoundSampler:
    """One arch of the space's ladder, where dimensions grow together (CompOFA, ICLR 2021)."""

    def __init__(self, space: SearchSpace, seed: int):
        self._ladder, self._seed = space.ladder(), seed

    def draw(self, step: int, slot: int) -> Arch:
        """Return the arch of one slot of one step."""
        return self._ladder[int(_generator(self._seed, step, slot).integers(len(self._ladder)))]


SAMPLERS: dict[str, Callable[[SearchSpace, int], Sampler]] = {
    "uniform": UniformSampler,
    "spread": SpreadSampler,
    "compound": CompoundSampler,
}


def _generator(seed: int, step: int, slot: int) -> np.random.Generator:
    return np.random.default_rng((seed, _SUBNETS, step, slot))
