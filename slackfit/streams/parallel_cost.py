"""`ParallelCost`: what several workers change about the cost of an iteration.

Shards of keys and values (KVP): a row reads what the fullest shard holds of its context, and an
iteration in which a stream lies on several shards pays for the gathers; where shards share linear
layers out, `linear_share` of their time is left of them then. Stages of blocks (SPP): an
iteration of m micro-batches takes (m + stages - 1) / (m * stages) of its time, the ideal of a
pipeline that is filled and drained, and the hops between stages. (Medha, arXiv 2409.17264 sections
3.2 and 3.3.) Below the break-even context a stream stays on one shard and costs what it did.

In a profile file this is the key `parallel` of `iterations`; milliseconds there, seconds here:

    "parallel": {"shards": 2, "break_even_tokens": 4096, "gather_ms": 6.2, "gather_token_ms": 0.1,
                 "stages": 1, "hop_ms": 0.0, "micro_tokens": 256, "linear_share": 0.7}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from slackfit.profile import ProfileError
from slackfit.streams.spread_rule import most_held

KEY = "parallel"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelCost:
    """A grid of workers and what they exchange.

    `gather_s` is what an iteration of one token pays in all its gathers, `gather_token_s` what each
    further token adds; `hop_s` passing a micro-batch of `micro_tokens` to the next stage.
    `linear_share` is what is left of the time of linear layers where all shards take part. Raises
    ProfileError for counts below 1, times that are negative or not finite, a share not in (0, 1].
    """

    shards: int = 1
    stages: int = 1
    break_even_tokens: int = 0
    gather_s: float = 0.0
    gather_token_s: float = 0.0
    hop_s: float = 0.0
    micro_tokens: int = 256
    linear_share: float = 1.0

    def __post_init__(self) -> None:
        for name in ("shards", "stages", "micro_tokens"):
            if getattr(self, name) < 1:
                raise ProfileError(f"{KEY}: {name} is {getattr(self, name)}, allowed 1 or more")
        if self.break_even_tokens < 0:
            raise ProfileError(
                f"{KEY}: break_even_tokens is {self.break_even_tokens}, allowed 0 or more"
            )
        for name in _TIMES:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ProfileError(f"{KEY}: {name} is {value}, allowed finite and at least 0")
        if not 0.0 < self.linear_share <= 1.0:
            raise ProfileError(
                f"{KEY}: linear_share is {self.linear_share}, allowed above 0 up to 1"
            )

    def reads(self, context: int) -> int:
        """Return how many positions the fullest shard reads of a context."""
        return most_held(context, self.shards, self.break_even_tokens)

    def is_spread(self, context: int) -> bool:
        """Whether a stream of this context lies on several shards."""
        return self.shards > 1 and context > self.break_even_tokens

    def pairs(self, start: int, length: int) -> int:
        """Return how many pairs of query and key the fullest shard has, of a causal chunk."""
        return self._pairs_until(start + length) - self._pairs_until(start)

    def seconds(
        self,
        *,
        fixed_s: float,
        linear: Callable[[int], float],
        attention_s: float,
        head_s: float,
        tokens: int,
        is_spread: bool,
    ) -> float:
        """Return the time of an iteration of `tokens`, from what its parts take on one worker."""
        stages, most = self.stages, self.micro_tokens
        if stages == 1 or tokens <= most:
            batches, share = 1.0, 1.0
            linear_s = linear(tokens)
        else:
            batches = tokens / most
            share = (batches + stages - 1) / (batches * stages)
            linear_s = linear(most) * batches
        if is_spread:
            linear_s *= self.linear_share
        gather_s = self.gather_s * batches + self.gather_token_s * max(tokens - 1, 0)
        work_s = fixed_s * batches + linear_s + attention_s + (gather_s if is_spread else 0.0)
        return work_s * share + head_s + self.hop_s * (stages - 1 + batches - 1) * (stages > 1)

    def scaled(self, factor: float) -> ParallelCost:
        """Return it for a device that takes `factor` times as long, above 0."""
        return replace(self, **{name: getattr(self, name) * factor for name in _TIMES})

    @classmethod
    def from_json(cls, data: object) -> ParallelCost:
        """Read the value of `parallel`. Raises ProfileError for a malformed one."""
        if not isinstance(data, Mapping):
            raise ProfileError(f"{KEY}: expected a JSON object, got {type(data).__name__}")
        fields = dict(cast("Mapping[str, Any]", data))
        known = {*_COUNTS, _SHARE, *(_in_ms(name) for name in _TIMES)}
        if unknown := sorted(fields.keys() - known):
            raise ProfileError(f"{KEY}: unknown {unknown[0]!r}, allowed {', '.join(sorted(known))}")
        try:
            values: dict[str, Any] = {n: int(fields[n]) for n in _COUNTS if n in fields}
            for name in _TIMES:
                values[name] = float(fields.get(_in_ms(name), 0.0)) * 1e-3
            values[_SHARE] = float(fields.get(_SHARE, 1.0))
        except (TypeError, ValueError) as error:
            raise ProfileError(f"{KEY} is malformed ({error!r})") from error
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return the value of `parallel`."""
        return {name: getattr(self, name) for name in (*_COUNTS, _SHARE)} | {
            _in_ms(name): getattr(self, name) * 1e3 for name in _TIMES
        }

    def _pairs_until(self, end: int) -> int:
        """The pairs of the first `end` rows: what the fullest shard holds, summed over contexts."""
        if self.shards == 1:
            return _triangle(end)
        home = self.break_even_tokens
        until = home * self.shards  # from there on all shards hold the same
        total = _triangle(min(end, home))
        if end > home:
            total += (min(end, until) - home) * home
        if end > until:
            total += (_triangle(end) - _triangle(until)) // self.shards
        return total


_COUNTS = ("shards", "stages", "break_even_tokens", "micro_tokens")
_TIMES = ("gather_s", "gather_token_s", "hop_s")
_SHARE = "linear_share"


def break_even_tokens(
    alone_s: Iterable[tuple[int, float]], spread_s: Iterable[tuple[int, float]]
) -> int | None:
    """Return the context from which a decode is no slower on several shards; None: from none on.

    Both are (context, seconds) with at least two contexts; straight lines are laid through them
    (least squares), since a decode's time is linear in what it reads.

    >>> break_even_tokens([(0, 1.0), (1000, 2.0)], [(0, 1.2), (1000, 1.7)])
    400
    """
    (a, slope_a), (b, slope_b) = _line(list(alone_s)), _line(list(spread_s))
    if slope_a <= slope_b:
        return None
    return max(0, math.ceil(round((b - a) / (slope_a - slope_b), 6)))


def _line(points: list[tuple[int, float]]) -> tuple[float, float]:
    """Intercept and slope by least squares."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    return mean_y - slope * mean_x, slope


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


def _in_ms(name: str) -> str:
    return name.removesuffix("_s") + "_ms"
