"""`SearchSpace`: which subnets of a supernet are legal, and how to draw from them.

A space is a table of choices: depths per stage, width multipliers per stage, and expand ratios,
kernel sizes, head counts that every kept block picks from independently. All choices are
ascending, so index 0 is the smallest and the last is the supernet itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from supernet.arch import Arch, Number

_PER_BLOCK = ("expand", "kernel", "heads")


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
        return self._at({})

    @property
    def largest(self) -> Arch:
        """The arch with the last choice everywhere: the supernet itself."""
        return self._at(dict.fromkeys(("resolution", "depth", "width", *_PER_BLOCK), 1.0))

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

    def ladder(self) -> tuple[Arch, ...]:
        """Return uniform archs from smallest to largest, one dimension raised per step.

        The next dimension raised is the one that is least far along, so that depth, width and
        expand grow together (the coupling of CompOFA, ICLR 2021, in small steps).
        """
        sizes = {"expand": len(self.expand), "kernel": len(self.kernel), "heads": len(self.heads)}
        sizes["width"] = max((len(c) for c in self.width), default=0)
        sizes["depth"] = max(len(c) for c in self.depth)
        sizes["resolution"] = len(self.resolution)
        last = {name: size - 1 for name, size in sizes.items() if size > 1}
        reached = dict.fromkeys(last, 0)
        archs = [self.smallest]
        while reached != last:
            behind = [name for name in last if reached[name] < last[name]]
            name = min(behind, key=lambda n: reached[n] / last[n])
            reached[name] += 1
            archs.append(self._at({n: reached[n] / last[n] for n in last}))
        return tuple(dict.fromkeys(archs))

    def sample(self, rng: np.random.Generator, tilt: float | None = None) -> Arch:
        """Draw each choice independently: uniformly, or the binomial(n - 1, `tilt`)-th of n."""

        def pick(_name: str, choices: Sequence[Number]) -> int:
            count = len(choices)
            return int(rng.integers(count) if tilt is None else rng.binomial(count - 1, tilt))

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

    def _at(self, fractions: Mapping[str, float]) -> Arch:
        """Take each dimension at its fraction of the way from first to last choice (default 0)."""

        def pick(name: str, choices: Sequence[Number]) -> int:
            return math.floor(fractions.get(name, 0.0) * (len(choices) - 1) + 0.5)

        return self._compose(pick)

    def _compose(self, pick: Callable[[str, Sequence[Number]], int]) -> Arch:
        """Build an arch from the index that `pick(dimension, choices)` returns for each entry."""
        depth = tuple(choices[pick("depth", choices)] for choices in self.depth)
        per_block: dict[str, Any] = {}
        for name in _PER_BLOCK:
            choices = getattr(self, name)
            per_block[name] = tuple(
                choices[pick(name, choices)] for _ in range(sum(depth) if choices else 0)
            )
        return Arch(
            resolution=self.resolution[pick("resolution", self.resolution)],
            depth=depth,
            width=tuple(choices[pick("width", choices)] for choices in self.width),
            **per_block,
        )

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
