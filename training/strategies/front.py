"""Random subnets drawn from the front: late in a run, what will be served is what trains.

Uniform draws of a space with millions of archs hardly ever hit one that is served, and draws nearly
all of middle size that no front holds. So once subnets differ in what they are worth, candidates
are measured, and the random slots are drawn from those that no cheaper one beats (as PreNAS, ICML
2023, chooses before training which archs train).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from supernet.arch import Arch
from supernet.space import SearchSpace
from training.strategies.sampling import Sampler, SpreadSampler

_DRAWN = 48
_CANDIDATE_SLOT = 1 << 21  # no slot of a step, nor of another sampler's bank
_FRONT = 11  # no other purpose of a draw


class FrontSampler:
    """Draws of another sampler until a front is found; then its members, each as likely."""

    def __init__(
        self, space: SearchSpace, seed: int, before: Sampler, macs_of: Callable[[Arch], int]
    ):
        """Candidates are every uniform shape and some drawn archs, spread over all sizes.

        Smallest and largest are none: they train in every step.
        """
        spread = SpreadSampler(space, seed)
        drawn = (spread.draw(i, _CANDIDATE_SLOT) for i in range(_DRAWN))
        every = dict.fromkeys((*space.uniforms(), *drawn))
        self.candidates = tuple(a for a in every if a not in (space.smallest, space.largest))
        self._seed, self._before, self._macs_of = seed, before, macs_of
        self._front: tuple[int, ...] = ()

    @property
    def front(self) -> tuple[Arch, ...]:
        """What is drawn from, ascending in MACs; empty before it is found."""
        return tuple(self.candidates[i] for i in self._front)

    def find(self, losses: Sequence[float]) -> None:
        """Take the candidates' losses: on the front is what no cheaper candidate equals.

        Raises ValueError for another number of losses than of candidates.
        """
        if len(losses) != len(self.candidates):
            raise ValueError(f"{len(losses)} losses of {len(self.candidates)} candidates")
        macs = [self._macs_of(arch) for arch in self.candidates]
        front: list[int] = []
        for i in sorted(range(len(macs)), key=lambda i: (macs[i], losses[i])):
            if not front or losses[i] < losses[front[-1]]:
                front.append(i)
        self._front = tuple(front)

    def draw(self, step: int, slot: int) -> Arch:
        """Return the arch of one slot of one step."""
        if not self._front:
            return self._before.draw(step, slot)
        rng = np.random.default_rng((self._seed, _FRONT, step, slot))
        return self.candidates[self._front[int(rng.integers(len(self._front)))]]

    def state(self) -> list[float]:
        """How many are on the front, and which."""
        return [float(len(self._front)), *map(float, self._front)]

    def restore(self, state: Sequence[float]) -> Sequence[float]:
        """Take back what `state` returned from the beginning of a list; return the rest."""
        count = int(state[0])
        self._front = tuple(int(i) for i in state[1 : 1 + count])
        return state[1 + count :]
