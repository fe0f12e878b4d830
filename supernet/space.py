"""`SearchSpace`: which subnets of a supernet are legal, and how to draw from them.

A space is a table of choices: depths per stage, width multipliers per stage, and expand ratios,
kernel sizes, head counts that every kept block picks from independently. All choices are
ascending, so index 0 is the smallest and the last is the supernet itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from supernet.arch import Arch, Number

_PER_BLOCK = ("expand", "kernel", "heads")
_Value = TypeVar("_Value", int, float)


class _Pick(Protocol):
    def __call__(self, choices: Sequence[_Value]) -> _Value: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """The legal `Arch`es of one supernet.

    `depth[s]` and `width[s]` are the choices of stage s; `expand`, `kernel` and `heads` are the
    choices of every block. An empty tuple: not elastic in that dimension.
    """

    family: str
    resolution: tuple[int, ...]
    depth: tuple[tuple[int, ...], ...]
    width: tuple[tuple[float, ...], ...] = ()
    expand: tuple[float, ...] = ()
    kernel: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.depth:
            raise ValueError("search space has no stage: depth is empty")
        if self.width and len(self.width) != len(self.depth):
            raise ValueError(f"width has {len(self.width)} stages, depth has {len(self.depth)}")
        choices: list[tuple[str, Sequence[Number]]] = [("resolution", self.resolution)]
        choices += [(f"depth[{s}]", c) for s, c in enumerate(self.depth)]
        choices += [(f"width[{s}]", c) for s, c in enumerate(self.width)]
        choices += [(name, getattr(self, name)) for name in _PER_BLOCK if getattr(self, name)]
        for name, values in choices:
            if not values or list(values) != sorted(set(values)) or values[0] <= 0:
                raise ValueError(
                    f"{self.family}: {name} choices are {list(values)}, "
                    "expected positive numbers, strictly increasing"
                )

    @property
    def smallest(self) -> Arch:
        """The arch with the first choice everywhere."""
        return self.at(0.0)

    @property
    def largest(self) -> Arch:
        """The arch with the last choice everywhere: the supernet itself."""
        return self.at(1.0)

    @property
    def num_archs(self) -> int:
        """How many subnets there are (may exceed what `len` can return)."""
        per_block = math.prod(len(getattr(self, n)) for n in _PER_BLOCK if getattr(self, n))
        total = len(self.resolution)
        for stage, depths in enumerate(self.depth):
            widths = len(self.width[stage]) if self.width else 1
            total *= widths * sum(per_block**d for d in depths)
        return total

    def __len__(self) -> int:
        return self.num_archs

    def __contains__(self, arch: object) -> bool:
        if not isinstance(arch, Arch):
            return False
        try:
            self.validate(arch)
        except ValueError:
            return False
        return True

    def __iter__(self) -> Iterator[Arch]:
        """Every arch, smallest depth first; meant for tiny spaces."""
        for resolution, depth in itertools.product(self.resolution, itertools.product(*self.depth)):
            blocks = sum(depth)
            per_block = [
                itertools.product(getattr(self, n), repeat=blocks if getattr(self, n) else 0)
                for n in _PER_BLOCK
            ]
            for width, *rest in itertools.product(itertools.product(*self.width), *per_block):
                named: dict[str, Any] = dict(zip(_PER_BLOCK, rest, strict=True))
                yield Arch(resolution=resolution, depth=depth, width=width, **named)

    def at(self, fraction: float) -> Arch:
        """Return the arch at `fraction` (0 smallest, 1 largest) of every dimension at once."""
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"fraction is {fraction}, allowed 0 to 1")

        def pick(choices: Sequence[_Value]) -> _Value:
            return choices[math.floor(fraction * (len(choices) - 1) + 0.5)]

        return self._compose(pick)

    def ladder(self, steps: int) -> tuple[Arch, ...]:
        """Return at most `steps` distinct archs from smallest to largest, all dimensions growing.

        The compound scaling of CompOFA (ICLR 2021) in the general form: one dial for all.
        """
        if steps < 2:
            raise ValueError(f"steps is {steps}, a ladder needs at least 2")
        return tuple(dict.fromkeys(self.at(i / (steps - 1)) for i in range(steps)))

    def sample(self, rng: np.random.Generator) -> Arch:
        """Draw each choice independently and uniformly."""

        def pick(choices: Sequence[_Value]) -> _Value:
            return choices[int(rng.integers(len(choices)))]

        return self._compose(pick)

    def uniform(self, **values: Number) -> Arch:
        """Return the arch that has the given value in every stage or block; largest elsewhere.

        Keywords are `resolution, depth, width, expand, kernel, heads`. Raises ValueError naming
        the field, the value and what is allowed.
        """
        unknown = sorted(set(values) - {"resolution", "depth", "width", *_PER_BLOCK})
        if unknown:
            raise ValueError(
                f"unknown {', '.join(unknown)}; allowed depth, width, "
                "expand, kernel, heads, resolution"
            )
        arch = self.largest
        if "depth" in values:
            arch = self._with_depth(arch, int(values["depth"]))
        for name in ("width", *_PER_BLOCK):
            if name in values:
                value = values[name]
                arch = replace(arch, **{name: (value,) * len(getattr(arch, name))})
                if not getattr(arch, name):
                    raise ValueError(f"{self.family} is not elastic in {name}")
        if "resolution" in values:
            arch = replace(arch, resolution=int(values["resolution"]))
        self.validate(arch)
        return arch

    def neighbours(self, arch: Arch) -> Iterator[Arch]:
        """Every legal arch that differs in one stage's depth or in one other entry."""
        self.validate(arch)
        for name in ("width", *_PER_BLOCK):
            for i, value in enumerate(getattr(arch, name)):
                for other in self._choices(name, i):
                    if other != value:
                        entries = list(getattr(arch, name))
                        entries[i] = other
                        yield replace(arch, **{name: tuple(entries)})
        for resolution in self.resolution:
            if resolution != arch.resolution:
                yield replace(arch, resolution=resolution)
        for stage, depths in enumerate(self.depth):
            for depth in depths:
                if depth != arch.depth[stage]:
                    yield self._resize_stage(arch, stage, depth)

    def validate(self, arch: Arch) -> None:
        """Raise ValueError naming the field, the value and what is allowed."""
        self._check("resolution", arch.resolution, self.resolution)
        self._check_length("depth", arch.depth, len(self.depth), "stages")
        for stage, depth in enumerate(arch.depth):
            self._check(f"depth[{stage}]", depth, self.depth[stage])
        self._check_length("width", arch.width, len(self.width), "stages")
        for stage, width in enumerate(arch.width):
            self._check(f"width[{stage}]", width, self.width[stage])
        blocks = sum(arch.depth)
        for name in _PER_BLOCK:
            entries = getattr(arch, name)
            self._check_length(name, entries, blocks if getattr(self, name) else 0, "blocks")
            for i, value in enumerate(entries):
                self._check(f"{name}[{i}]", value, getattr(self, name))

    def _compose(self, pick: _Pick) -> Arch:
        resolution = pick(self.resolution)
        depth = tuple(pick(choices) for choices in self.depth)
        width = tuple(pick(choices) for choices in self.width)
        blocks = sum(depth)
        per_block = {
            name: tuple(pick(getattr(self, name)) for _ in range(blocks))
            for name in _PER_BLOCK
            if getattr(self, name)
        }
        return Arch(resolution=resolution, depth=depth, width=width, **per_block)

    def _choices(self, name: str, index: int) -> Sequence[Number]:
        return self.width[index] if name == "width" else getattr(self, name)

    def _with_depth(self, arch: Arch, depth: int) -> Arch:
        for stage, choices in enumerate(self.depth):
            self._check(f"depth[{stage}]", depth, choices)
            arch = self._resize_stage(arch, stage, depth)
        return arch

    def _resize_stage(self, arch: Arch, stage: int, depth: int) -> Arch:
        """Shorten a stage from its end, or lengthen it with blocks of the largest choice."""
        start, old = sum(arch.depth[:stage]), arch.depth[stage]
        changed: dict[str, tuple[Number, ...]] = {}
        for name in _PER_BLOCK:
            entries = getattr(arch, name)
            if entries:
                kept = entries[start : start + min(old, depth)]
                added = (getattr(self, name)[-1],) * max(0, depth - old)
                changed[name] = entries[:start] + kept + added + entries[start + old :]
        depths = (*arch.depth[:stage], depth, *arch.depth[stage + 1 :])
        return replace(arch, depth=depths, **changed)

    def _check(self, name: str, value: Number, allowed: Sequence[Number]) -> None:
        if value not in allowed:
            raise ValueError(
                f"arch outside the {self.family} space: {name} is {value:g}, "
                f"allowed {', '.join(f'{a:g}' for a in allowed)}"
            )

    def _check_length(self, name: str, entries: Sequence[Number], expected: int, of: str) -> None:
        if len(entries) != expected:
            raise ValueError(
                f"arch outside the {self.family} space: {name} has {len(entries)} entries, "
                f"expected {expected} ({of})"
            )
