"""`SearchSpace`: which subnets of a supernet are legal, and how to draw from them.

A space is a table of choices: depths per stage, widths, and expand ratios, kernel sizes, head
counts and fan-outs that every kept block picks from independently. All choices are ascending, so
index 0 is the smallest and the last is the supernet itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from supernet.arch import Arch, Number

_PER_BLOCK = ("expand", "kernel", "heads", "fanout")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """The legal `Arch`es of one supernet.

    `depth[s]` and `width[s]` are the choices of stage s (there may be more widths than stages,
    e.g. the stem's); `expand`, `kernel`, `heads` and `fanout` are the choices of every block (of a
    graph network: of every hop), or hold one tuple of choices per stage. An empty tuple: not
    elastic in that dimension. `num_blocks[s]` says how many blocks each choice of `depth[s]` keeps;
    empty: as many as the depth.
    """

    family: str
    resolution: tuple[int, ...]
    depth: tuple[tuple[int, ...], ...]
    width: tuple[tuple[float, ...], ...] = ()
    expand: tuple[float, ...] | tuple[tuple[float, ...], ...] = ()
    kernel: tuple[int, ...] | tuple[tuple[int, ...], ...] = ()
    heads: tuple[int, ...] | tuple[tuple[int, ...], ...] = ()
    fanout: tuple[int, ...] | tuple[tuple[int, ...], ...] = ()
    num_blocks: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.depth:
            raise ValueError("search space has no stage: depth is empty")
        if self.num_blocks and list(map(len, self.num_blocks)) != list(map(len, self.depth)):
            raise ValueError(f"{self.family}: num_blocks needs an entry for every depth choice")
        stages = range(len(self.depth))
        choices: list[tuple[str, Sequence[Number]]] = [("resolution", self.resolution)]
        choices += [(f"width[{s}]", c) for s, c in enumerate(self.width)]
        choices += [
            (name, self.block_choices(name, s))
            for name in _PER_BLOCK
            for s in stages
            if getattr(self, name)
        ]
        for name, values in choices:
            # The widths of OFA-ResNet50 are indices, so zero is a width.
            positive = bool(values) and (values[0] > 0 or name.startswith("width"))
            self._check_choices(name, values, "positive", positive)
        for stage, values in enumerate(self.depth):
            self._check_choices(f"depth[{stage}]", values, "non-negative", min(values) >= 0)

    @property
    def smallest(self) -> Arch:
        """The arch with the first choice everywhere."""
        return self._at({})

    @property
    def largest(self) -> Arch:
        """The arch with the last choice everywhere: the supernet itself."""
        return self._at(dict.fromkeys(("resolution", "depth", "width", *_PER_BLOCK), 1.0))

    @property
    def whole(self) -> Arch:
        """What the stored supernet is built at: the largest arch, with every kernel size.

        Only its kernels differ from `largest`: none is chosen, so all are present. It is no
        member of the space (docs/decisions/004-elastic-kernels.md).
        """
        return replace(self.largest, kernel=())

    @property
    def num_archs(self) -> int:
        """How many subnets there are (may exceed what `len` can return)."""
        total = len(self.resolution) * math.prod(map(len, self.width))
        for stage, depths in enumerate(self.depth):
            choices = (self.block_choices(n, stage) for n in _PER_BLOCK if getattr(self, n))
            per_block = math.prod(map(len, choices))
            total *= sum(per_block ** self.blocks_of(stage, d) for d in depths)
        return total

    def block_choices(self, name: str, stage: int) -> Sequence[Number]:
        """Choices of `expand`, `kernel`, `heads` or `fanout` for every block of a stage."""
        choices = getattr(self, name)
        if choices and isinstance(choices[0], tuple):
            return cast("Sequence[Number]", choices[stage])
        return choices

    def blocks_of(self, stage: int, depth: int) -> int:
        """How many blocks with entries of their own a stage keeps at a depth."""
        if not self.num_blocks:
            return depth
        return self.num_blocks[stage][self.depth[stage].index(depth)]

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
            stages = self._stage_of_blocks(depth)
            per_block = [
                itertools.product(*(self.block_choices(n, s) for s in stages if getattr(self, n)))
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
        last = self._last_levels()
        reached = dict.fromkeys(last, 0)
        archs = [self.smallest]
        while reached != last:
            behind = [name for name in last if reached[name] < last[name]]
            name = min(behind, key=lambda n: reached[n] / last[n])
            reached[name] += 1
            archs.append(self._at({n: reached[n] / last[n] for n in last}))
        return tuple(dict.fromkeys(archs))

    def uniforms(self) -> tuple[Arch, ...]:
        """Return every combination of one level each of depth, width and what blocks choose.

        All at the largest resolution. Stages with fewer choices take their nearest. The ladder
        raises one dimension after the other and so misses most of these.
        """
        last = self._last_levels()
        last.pop("resolution", None)
        levels = [[i / top for i in range(top + 1)] for top in last.values()]
        combined = (dict(zip(last, chosen, strict=True)) for chosen in itertools.product(*levels))
        return tuple(dict.fromkeys(self._at({**one, "resolution": 1.0}) for one in combined))

    def sample(self, rng: np.random.Generator, tilt: float | None = None) -> Arch:
        """Draw each choice independently: uniformly, or the binomial(n - 1, `tilt`)-th of n."""

        def pick(_name: str, choices: Sequence[Number]) -> int:
            count = len(choices)
            return int(rng.integers(count) if tilt is None else rng.binomial(count - 1, tilt))

        return self._compose(pick)

    def uniform(self, **values: Number) -> Arch:
        """Return the arch that has the given value in every stage or block; largest elsewhere.

        Where a stage does not offer a value that another one does, it takes its largest choice
        below it. Keywords are `resolution, depth, width, expand, kernel, heads, fanout`. Raises
        ValueError naming the field, the value and what is allowed.
        """
        unknown = sorted(set(values) - {"resolution", "depth", "width", *_PER_BLOCK})
        if unknown:
            raise ValueError(
                f"unknown {', '.join(unknown)}; allowed depth, width, "
                "expand, kernel, heads, fanout, resolution"
            )
        arch = self.largest
        if "depth" in values:
            depths = self._nearest("depth", values["depth"], self.depth)
            for stage, depth in enumerate(depths):
                arch = self._resize_stage(arch, stage, int(depth))
        if "width" in values:
            arch = replace(arch, width=self._nearest("width", values["width"], self.width))
        for name in _PER_BLOCK:
            if name in values:
                per_stage = [self.block_choices(name, s) for s in range(len(self.depth))]
                entries = self._nearest(name, values[name], per_stage if per_stage[0] else ())
                stages = self._stage_of_blocks(arch.depth)
                arch = replace(arch, **{name: tuple(entries[s] for s in stages)})
        if "resolution" in values:
            arch = replace(arch, resolution=int(values["resolution"]))
        self.validate(arch)
        return arch

    def neighbours(self, arch: Arch) -> Iterator[Arch]:
        """Every legal arch that differs in one stage's depth or in one other entry."""
        self.validate(arch)
        for name in ("width", *_PER_BLOCK):
            for i, value in enumerate(getattr(arch, name)):
                for other in self._choices(arch, name, i):
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
        stages = self._stage_of_blocks(arch.depth)
        for name in _PER_BLOCK:
            entries = getattr(arch, name)
            self._check_length(name, entries, len(stages) if getattr(self, name) else 0, "blocks")
            for i, (stage, value) in enumerate(zip(stages, entries, strict=False)):
                self._check(f"{name}[{i}]", value, self.block_choices(name, stage))

    def _last_levels(self) -> dict[str, int]:
        """Of each elastic dimension the index of its last choice, in the stage that has most."""
        stages = range(len(self.depth))
        sizes = {n: max(len(self.block_choices(n, s)) for s in stages) for n in _PER_BLOCK}
        sizes["width"] = max((len(c) for c in self.width), default=0)
        sizes["depth"] = max(len(c) for c in self.depth)
        sizes["resolution"] = len(self.resolution)
        return {name: size - 1 for name, size in sizes.items() if size > 1}

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
            stages = self._stage_of_blocks(depth) if getattr(self, name) else ()
            offered = (self.block_choices(name, stage) for stage in stages)
            per_block[name] = tuple(choices[pick(name, choices)] for choices in offered)
        return Arch(
            resolution=self.resolution[pick("resolution", self.resolution)],
            depth=depth,
            width=tuple(choices[pick("width", choices)] for choices in self.width),
            **per_block,
        )

    def _choices(self, arch: Arch, name: str, index: int) -> Sequence[Number]:
        if name == "width":
            return self.width[index]
        return self.block_choices(name, self._stage_of_blocks(arch.depth)[index])

    def _stage_of_blocks(self, depth: Sequence[int]) -> tuple[int, ...]:
        """The stage of every kept block, in forward order."""
        return tuple(s for s, d in enumerate(depth) for _ in range(self.blocks_of(s, d)))

    def _nearest(
        self, name: str, value: Number, per_stage: Sequence[Sequence[Number]]
    ) -> tuple[Number, ...]:
        """Per stage the largest choice up to `value`, which at least one stage must offer."""
        if not per_stage:
            raise ValueError(f"{self.family} is not elastic in {name}")
        offered = any(value in choices for choices in per_stage)
        entries: list[Number] = []
        for stage, choices in enumerate(per_stage):
            below = [choice for choice in choices if choice <= value]
            if not offered or not below:
                self._check(f"{name}[{stage}]", value, choices)
            entries.append(below[-1])
        return tuple(entries)

    def _resize_stage(self, arch: Arch, stage: int, depth: int) -> Arch:
        """Shorten a stage from its end, or lengthen it with blocks of the largest choice."""
        blocks = [self.blocks_of(s, d) for s, d in enumerate(arch.depth)]
        start, old, new = sum(blocks[:stage]), blocks[stage], self.blocks_of(stage, depth)
        changed: dict[str, tuple[Number, ...]] = {}
        for name in _PER_BLOCK:
            entries = getattr(arch, name)
            if entries:
                kept = entries[start : start + min(old, new)]
                added = (self.block_choices(name, stage)[-1],) * max(0, new - old)
                changed[name] = entries[:start] + kept + added + entries[start + old :]
        depths = (*arch.depth[:stage], depth, *arch.depth[stage + 1 :])
        return replace(arch, depth=depths, **changed)

    def _check_choices(self, name: str, values: Sequence[Number], kind: str, ok: bool) -> None:
        if not ok or list(values) != sorted(set(values)):
            raise ValueError(
                f"{self.family}: {name} choices are {list(values)}, "
                f"expected {kind} numbers, strictly increasing"
            )

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
