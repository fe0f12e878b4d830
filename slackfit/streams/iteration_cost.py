"""`IterationCosts`: what one iteration of a decoder takes at each width, and how good a width is.

An iteration runs chunks of several streams in one pass: a decode (one token) or a part of a prompt.
Its time at one width is a sum whose terms never fall when work is added:

    fixed + linear(tokens) + head(rows that sample) + decodes * decode
          + decode positions * position + chunks * chunk + chunk pairs * pair

`linear` and `head` are curves through measured points, since the first tokens are nearly free where
weights are read from memory (Sarathi-Serve, OSDI'24 section 3.1) and no straight line says so.
Attention is linear in what it reads: a decode in the positions of its context, a chunk in its pairs
of query and key (Vidur, MLSys'24 section 4.3, which profiles both apart). No coefficient may be
negative, so more work is never predicted to be faster.

In a profile file this is the key `iterations`; milliseconds there, seconds here:

    "iterations": {
      "quality_kind": "top1_agreement",
      "linear_tokens": [1, 2, 4, 8, ...], "head_rows": [1, 2, 4, 8, ...],
      "rungs": {"<subnet id>": {"fixed_ms": 0.5, "linear_ms": [...], "head_ms": [...],
                "decode_ms": 0.1, "position_ms": 1e-4, "chunk_ms": 0.1, "pair_ms": 1e-5}}}

Every subnet of the profile has one rung, and its accuracy is the rung's quality, of which
`quality_kind` says what it is: numbers of different kinds are not compared. With the key `parallel`
iterations run on several workers (`parallel_cost.py`). Unknown keys are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple, cast

from slackfit.profile import LatencyProfile, ProfileError
from slackfit.streams.parallel_cost import KEY as PARALLEL
from slackfit.streams.parallel_cost import ParallelCost

KEY = "iterations"
_KNOWN_KEYS = {"quality_kind", "linear_tokens", "head_rows", "rungs", PARALLEL}


class IterationWork(NamedTuple):
    """What one iteration computes, as far as its time depends on it.

    `tokens` pass the linear layers, `rows` of them the head (only those whose logits are sampled).
    A chunk of one token is a decode: `decodes` of them read `decode_positions` keys in all. The
    `chunks` of more tokens have `chunk_pairs` pairs of a query and a key that it attends to. Where
    several shards hold keys and values, both are the fullest's, and `spread` is how many of the
    streams lie on several.
    """

    tokens: int = 0
    rows: int = 0
    decodes: int = 0
    decode_positions: int = 0
    chunks: int = 0
    chunk_pairs: int = 0
    spread: int = 0

    @classmethod
    def of(cls, chunks: Iterable[tuple[int, int, bool]]) -> IterationWork:
        """Return the work of chunks (tokens already cached, tokens of the chunk, samples).

        >>> IterationWork.of([(9, 1, True), (4, 2, False)])[:6]
        (3, 1, 1, 10, 1, 11)
        """
        tokens = rows = decodes = positions = longer = pairs = 0
        for start, length, samples in chunks:
            tokens += length
            rows += samples
            if length == 1:
                decodes += 1
                positions += start + 1
            else:
                longer += 1
                pairs += chunk_pairs(start, length)
        return cls(tokens, rows, decodes, positions, longer, pairs)


NO_WORK = IterationWork()


def chunk_pairs(start: int, length: int) -> int:
    """Return how many (query, key) pairs a causal chunk of `length` after `start` tokens has.

    >>> chunk_pairs(0, 3), chunk_pairs(4, 2)
    (6, 11)
    """
    return length * start + length * (length + 1) // 2


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Seconds against a count: measured at `at`, straight between, the last slope beyond.

    0 of it costs nothing, fewer than the first point what the first point does. Raises
    ProfileError unless `at` rises from 1 or more and `seconds` never falls.
    """

    at: tuple[int, ...]
    seconds: tuple[float, ...]
    _table: list[float] = field(default_factory=list[float], init=False, repr=False, compare=False)
    _slope: float = field(default=0.0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_curve(self.at, self.seconds)
        table = [0.0] + [self.seconds[0]] * self.at[0]
        for i in range(1, len(self.at)):
            (a, b), (s, t) = self.at[i - 1 : i + 1], self.seconds[i - 1 : i + 1]
            table += [s + (t - s) * step / (b - a) for step in range(1, b - a + 1)]
        object.__setattr__(self, "_table", table)
        object.__setattr__(self, "_slope", self._last_slope())

    def __call__(self, count: int) -> float:
        """Return the seconds of `count`, 0 or more."""
        over = count - self.at[-1]
        return self._table[count] if over <= 0 else self._table[-1] + over * self._slope

    def scaled(self, factor: float) -> CostCurve:
        """Return the curve with every time multiplied by `factor`, above 0."""
        return CostCurve(self.at, tuple(t * factor for t in self.seconds))

    def _last_slope(self) -> float:
        if len(self.at) == 1:
            return self.seconds[0] / self.at[0]
        return (self.seconds[-1] - self.seconds[-2]) / (self.at[-1] - self.at[-2])


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationCost:
    """The time of an iteration at one width (seconds per unit of work), and its quality.

    `quality` is a fraction of the kind that `IterationCosts` names. Raises ProfileError for a
    coefficient that is negative or not finite.
    """

    subnet_id: str
    quality: float
    linear: CostCurve
    head: CostCurve
    fixed_s: float = 0.0
    decode_s: float = 0.0
    position_s: float = 0.0
    chunk_s: float = 0.0
    pair_s: float = 0.0
    parallel: ParallelCost | None = None

    def __post_init__(self) -> None:
        for name in _COEFFICIENTS:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ProfileError(
                    f"rung {self.subnet_id!r}: {name} is {value}, allowed finite and at least 0"
                )

    def seconds(self, work: IterationWork) -> float:
        """Return the predicted seconds of an iteration."""
        tokens, rows, decodes, positions, chunks, pairs, spread = work
        attention_s = (
            decodes * self.decode_s
            + positions * self.position_s
            + chunks * self.chunk_s
            + pairs * self.pair_s
        )
        return self.seconds_of(attention_s, tokens, rows, spread > 0)

    def seconds_of(self, attention_s: float, tokens: int, rows: int, is_spread: bool) -> float:
        """Return the predicted seconds of an iteration, from what its attention takes."""
        if self.parallel is None:
            return self.fixed_s + self.linear(tokens) + self.head(rows) + attention_s
        return self.parallel.seconds(
            fixed_s=self.fixed_s,
            linear=self.linear,
            attention_s=attention_s,
            head_s=self.head(rows),
            tokens=tokens,
            is_spread=is_spread,
        )

    def attention_s(self, start: int, length: int) -> float:
        """Return what the attention of one chunk takes, behind `start` tokens."""
        if length == 1:
            return self.decode_s + self.reads(start + 1) * self.position_s
        return self.chunk_s + self.pairs(start, length) * self.pair_s

    def pairs(self, start: int, length: int) -> int:
        """Return how many pairs a causal chunk has, on the fullest shard."""
        if self.parallel is None:
            return chunk_pairs(start, length)
        return self.parallel.pairs(start, length)

    def reads(self, context: int) -> int:
        """Return how many positions of a context a decode reads, on the fullest shard."""
        return context if self.parallel is None else self.parallel.reads(context)

    def is_spread(self, context: int) -> bool:
        """Whether a stream of this context lies on several shards."""
        return self.parallel is not None and self.parallel.is_spread(context)

    def scaled(self, factor: float) -> IterationCost:
        """Return the cost of a device that takes `factor` times as long, above 0."""
        return replace(
            self,
            linear=self.linear.scaled(factor),
            head=self.head.scaled(factor),
            parallel=None if self.parallel is None else self.parallel.scaled(factor),
            **{name: getattr(self, name) * factor for name in _COEFFICIENTS},
        )


_COEFFICIENTS = ("fixed_s", "decode_s", "position_s", "chunk_s", "pair_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationCosts:
    """The widths of one decoder on one device, in ascending order of (quality, id).

    `quality_kind` says what the qualities are, such as `top1_agreement`: the share of next tokens
    that the width and the largest agree on. Raises ProfileError for no rung or one named twice.
    """

    quality_kind: str
    rungs: tuple[IterationCost, ...]
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    _by_id: dict[str, IterationCost] = field(
        default_factory=dict[str, IterationCost], init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not self.rungs or not self.quality_kind:
            raise ProfileError(f"{KEY}: give a quality_kind and a rung at least")
        ordered = tuple(sorted(self.rungs, key=lambda rung: (rung.quality, rung.subnet_id)))
        object.__setattr__(self, "rungs", ordered)
        self._by_id.update({rung.subnet_id: rung for rung in ordered})
        if len(self._by_id) < len(ordered):
            raise ProfileError(f"{KEY}: rungs are named twice: {', '.join(self.subnet_ids)}")

    @property
    def subnet_ids(self) -> tuple[str, ...]:
        """Ids in ascending order of quality."""
        return tuple(rung.subnet_id for rung in self.rungs)

    def rung(self, subnet_id: str) -> IterationCost:
        """Return one width. Raises ProfileError that lists the known ids."""
        found = self._by_id.get(subnet_id)
        if found is None:
            raise ProfileError(
                f"no rung {subnet_id!r} in {KEY}; allowed {', '.join(self.subnet_ids)}"
            )
        return found

    def seconds(self, subnet_id: str, work: IterationWork) -> float:
        """Return the predicted seconds of an iteration. Raises ProfileError as `rung`."""
        return self.rung(subnet_id).seconds(work)

    @property
    def parallel(self) -> ParallelCost | None:
        """What several workers change, which is the same for all widths; None: there is one."""
        return self.rungs[0].parallel

    def on_workers(self, parallel: ParallelCost | None) -> IterationCosts:
        """Return these costs on a grid of workers, or on one."""
        return replace(self, rungs=tuple(replace(r, parallel=parallel) for r in self.rungs))

    def decode_work(self, cached: Sequence[int]) -> IterationWork:
        """Return the work of a decode of each stream, of which so many tokens are cached."""
        count, parallel = len(cached), self.parallel
        if parallel is None:
            return IterationWork(count, count, count, sum(cached) + count)
        reads = sum([parallel.reads(tokens + 1) for tokens in cached])
        spread = sum([parallel.is_spread(tokens + 1) for tokens in cached])
        return IterationWork(count, count, count, reads, spread=spread)

    def select(self, subnet_ids: Iterable[str]) -> IterationCosts:
        """Return these costs with the named rungs only. Raises ProfileError as `rung`."""
        return replace(self, rungs=tuple(self.rung(i) for i in dict.fromkeys(subnet_ids)))

    def scaled(self, factor: float) -> IterationCosts:
        """Return the costs of a device that takes `factor` times as long, above 0."""
        return replace(self, rungs=tuple(rung.scaled(factor) for rung in self.rungs))

    @classmethod
    def of(cls, profile: LatencyProfile) -> IterationCosts:
        """Read a profile's `iterations`, with its accuracies as qualities.

        Raises ProfileError where the profile has none (`has_iterations`), lacks a subnet's rung or
        names one that it does not have, or a number is no cost.
        """
        if not has_iterations(profile):
            raise ProfileError(
                f"profile {profile.name!r} has no {KEY}: it was measured for batches, not for the "
                "iterations of a decoder; measure one with `supernet profile` on a decoder"
            )
        try:
            qualities = {subnet.subnet_id: subnet.accuracy for subnet in profile.subnets}
            return cls.from_json(profile.extra[KEY], qualities)
        except ProfileError as error:
            raise ProfileError(f"profile {profile.name!r}: {error}") from None

    @classmethod
    def from_json(cls, data: object, qualities: Mapping[str, float]) -> IterationCosts:
        """Build the costs from the value of `iterations` and each width's quality.

        Raises ProfileError for a malformed value, or widths that are not those of `qualities`.
        """
        fields = _mapping(KEY, data)
        try:
            rows = _mapping("rungs", fields["rungs"])
            if set(rows) != set(qualities):
                raise ProfileError(
                    f"{KEY} has rungs {', '.join(sorted(rows))}, the profile subnets "
                    f"{', '.join(sorted(qualities))}; give one rung for each subnet"
                )
            tokens, samples = tuple(fields["linear_tokens"]), tuple(fields["head_rows"])
            parallel = ParallelCost.from_json(fields[PARALLEL]) if PARALLEL in fields else None
            return cls(
                quality_kind=str(fields["quality_kind"]),
                rungs=tuple(
                    _rung_from_json(subnet_id, quality, rows, tokens, samples, parallel)
                    for subnet_id, quality in qualities.items()
                ),
                extra={key: value for key, value in fields.items() if key not in _KNOWN_KEYS},
            )
        except ProfileError:
            raise
        except (TypeError, ValueError, KeyError) as error:
            raise ProfileError(f"{KEY} is malformed ({error!r})") from error

    def to_json(self) -> dict[str, Any]:
        """Return the value of a profile's `iterations`. Raises ProfileError for unequal points."""
        first = self.rungs[0]
        if any((r.linear.at, r.head.at) != (first.linear.at, first.head.at) for r in self.rungs):
            raise ProfileError(f"{KEY}: rungs are measured at different points; use the same")
        return {
            "quality_kind": self.quality_kind,
            "linear_tokens": list(first.linear.at),
            "head_rows": list(first.head.at),
            "rungs": {
                rung.subnet_id: {
                    "linear_ms": [t * 1e3 for t in rung.linear.seconds],
                    "head_ms": [t * 1e3 for t in rung.head.seconds],
                    **{_in_ms(name): getattr(rung, name) * 1e3 for name in _COEFFICIENTS},
                }
                for rung in self.rungs
            },
            **({} if self.parallel is None else {PARALLEL: self.parallel.to_json()}),
            **self.extra,
        }

    def in_profile(self, profile: LatencyProfile) -> LatencyProfile:
        """Return `profile` with these costs written in. Raises ProfileError if they do not fit."""
        written = replace(profile, extra={**profile.extra, KEY: self.to_json()})
        if IterationCosts.of(written).subnet_ids != self.subnet_ids:
            raise ProfileError("the profile's accuracies order its subnets in another way")
        return written


def has_iterations(profile: LatencyProfile) -> bool:
    """Whether a profile tells the cost of iterations: then it serves streams."""
    return KEY in profile.extra


def _rung_from_json(
    subnet_id: str,
    quality: float,
    rows: Mapping[str, Any],
    tokens: tuple[int, ...],
    samples: tuple[int, ...],
    parallel: ParallelCost | None,
) -> IterationCost:
    row = _mapping(f"rung {subnet_id!r}", rows[subnet_id])
    return IterationCost(
        subnet_id=subnet_id,
        quality=quality,
        linear=CostCurve(tokens, tuple(float(t) * 1e-3 for t in row["linear_ms"])),
        head=CostCurve(samples, tuple(float(t) * 1e-3 for t in row["head_ms"])),
        parallel=parallel,
        **{name: float(row.get(_in_ms(name), 0.0)) * 1e-3 for name in _COEFFICIENTS},
    )


def _in_ms(name: str) -> str:
    return name.removesuffix("_s") + "_ms"


def _mapping(name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ProfileError(f"{name}: expected a JSON object, got {type(value).__name__}")
    return cast("Mapping[str, Any]", value)


def _check_curve(at: Sequence[int], seconds: Sequence[float]) -> None:
    if not at or any(type(count) is not int for count in at) or at[0] < 1:
        raise ProfileError(f"points are {list(at)}, allowed whole numbers from 1 up")
    if any(a >= b for a, b in pairwise(at)):
        raise ProfileError(f"points are {list(at)}, they must rise")
    if len(seconds) != len(at):
        raise ProfileError(f"{len(seconds)} times for {len(at)} points; give one each")
    if any(not math.isfinite(t) or t < 0.0 for t in seconds):
        raise ProfileError(f"times are {list(seconds)}, allowed finite and at least 0")
    if any(s > t for s, t in pairwise(seconds)):
        raise ProfileError(f"times are {list(seconds)}; more work may not be faster")
