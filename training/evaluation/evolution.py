"""Evolutionary search for the front of two aims: little cost, high predicted accuracy.

Parents are the archs that no other beats, and those nearest to them; children are mutations
(one to three single changes) and crossovers (each stage, or of a single one each block, from either
parent). All is predicted, so
thousands of archs are judged in seconds; OFA's search is the same idea for one budget at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from supernet.arch import Arch
from supernet.space import SearchSpace

_PER_BLOCK = ("expand", "kernel", "heads", "fanout")


class Aim(NamedTuple):
    """What an arch costs (any unit), and its accuracy."""

    cost: float
    accuracy: float


class EvolutionSettings(NamedTuple):
    """Size of the search; `limit` is the highest cost allowed."""

    population: int = 64
    generations: int = 20
    limit: float = float("inf")


def evolve(
    space: SearchSpace,
    start: Iterable[Arch],
    cost_of: Callable[[Arch], float],
    accuracy_of: Callable[[Sequence[Arch]], np.ndarray],
    settings: EvolutionSettings,
    rng: np.random.Generator,
) -> dict[Arch, Aim]:
    """Return the predicted front, ascending in cost, within the limit.

    Raises ValueError when neither an arch of the start nor the smallest is.
    """
    known: dict[Arch, Aim] = {}

    def judge(archs: Iterable[Arch]) -> None:
        new = [a for a in dict.fromkeys(archs) if a not in known]
        cheap = [(a, c) for a, c in ((a, cost_of(a)) for a in new) if c <= settings.limit]
        if cheap:
            scores = accuracy_of([arch for arch, _ in cheap])
            known.update({a: Aim(c, float(s)) for (a, c), s in zip(cheap, scores, strict=True)})

    judge([space.smallest, *start])
    if not known:
        raise ValueError(
            f"no subnet is within the limit: the smallest, {space.smallest.subnet_id}, costs "
            f"{cost_of(space.smallest):g}, allowed {settings.limit:g}"
        )
    for _ in range(settings.generations):
        parents = _parents(known, settings.population)
        half = settings.population // 2
        children = [mutate(space, _pick(parents, rng), rng) for _ in range(half)]
        pairs = [(_pick(parents, rng), _pick(parents, rng)) for _ in range(half)]
        judge([*children, *(cross(space, a, b, rng) for a, b in pairs)])
    best = front(known)
    return {arch: known[arch] for arch in best}


def front(aims: Mapping[Arch, Aim]) -> list[Arch]:
    """Archs that are more accurate than every cheaper one, ascending in cost."""
    best: list[Arch] = []
    highest = -1.0
    for arch, aim in sorted(aims.items(), key=lambda item: (item[1].cost, -item[1].accuracy)):
        if aim.accuracy > highest:
            best.append(arch)
            highest = aim.accuracy
    return best


def spread_over_cost(archs: Sequence[Arch], cost_of: Callable[[Arch], float], n: int) -> list[Arch]:
    """At most n of the archs (ascending in cost), evenly over the logarithm of the cost."""
    if len(archs) <= n:
        return list(archs)
    at = np.log([cost_of(arch) for arch in archs])
    wanted = np.linspace(at[0], at[-1], n)
    return list(dict.fromkeys(archs[int(np.abs(at - w).argmin())] for w in wanted))


def mutate(space: SearchSpace, arch: Arch, rng: np.random.Generator) -> Arch:
    """One to three single changes."""
    for _ in range(int(rng.integers(1, 4))):
        options = list(space.neighbours(arch))
        if options:
            arch = options[int(rng.integers(len(options)))]
    return arch


def cross(space: SearchSpace, a: Arch, b: Arch, rng: np.random.Generator) -> Arch:
    """Take each stage, with its blocks, from either parent; legal since stages are independent.

    Where one stage is all there is, and both keep the same blocks, each block is from either.
    """
    parents = (a, b)
    if len(space.depth) == 1 and a.depth == b.depth:
        drawn = rng.integers(2, size=space.blocks_of(0, a.depth[0]))
        blocks: dict[str, Any] = {
            name: tuple(getattr(parents[p], name)[i] for i, p in enumerate(drawn))
            for name in _PER_BLOCK
            if getattr(space, name)
        }
        return replace(parents[int(rng.integers(2))], **blocks)
    chosen = [parents[int(rng.integers(2))] for _ in space.depth]
    values: dict[str, Any] = {
        "resolution": parents[int(rng.integers(2))].resolution,
        "depth": tuple(parent.depth[s] for s, parent in enumerate(chosen)),
        "width": tuple(
            (chosen[i] if i < len(chosen) else parents[int(rng.integers(2))]).width[i]
            for i in range(len(space.width))
        ),
    }
    for name in _PER_BLOCK:
        if getattr(space, name):
            values[name] = tuple(
                value for s, parent in enumerate(chosen) for value in _stage(space, parent, name, s)
            )
    return Arch(**values)


def _stage(space: SearchSpace, arch: Arch, name: str, stage: int) -> tuple[float, ...]:
    counts = [space.blocks_of(s, depth) for s, depth in enumerate(arch.depth)]
    first = sum(counts[:stage])
    return getattr(arch, name)[first : first + counts[stage]]


def _parents(known: Mapping[Arch, Aim], count: int) -> list[Arch]:
    """The front, then the front of what is left, and so on, up to `count` archs."""
    left, parents = dict(known), []
    while left and len(parents) < count:
        for arch in front(left):
            parents.append(arch)
            del left[arch]
    return parents[:count] if len(parents) > 2 * count else parents


def _pick(archs: Sequence[Arch], rng: np.random.Generator) -> Arch:
    return archs[int(rng.integers(len(archs)))]
