"""Which random subnets a step trains: drawn from a private generator keyed by (seed, step, slot).

So every worker draws the same subnets without talking, and a resumed run draws what the
uninterrupted one would have drawn.
"""

from __future__ import annotations

import numpy as np

from supernet.arch import Arch
from supernet.space import SearchSpace

_SUBNETS = 2


class UniformSampler:
    """Every choice of the space independently and uniformly (DepS, OFA)."""

    def __init__(self, space: SearchSpace, seed: int):
        self._space, self._seed = space, seed

    def draw(self, step: int, slot: int) -> Arch:
        """Return the arch of one slot of one step."""
        return self._space.sample(np.random.default_rng((self._seed, _SUBNETS, step, slot)))
