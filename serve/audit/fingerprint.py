"""Fingerprinting: bisect specifications until one subnet always answers (PSML, arXiv 2307.01292).

The victim is the most accurate subnet within a deadline. Bisecting the floor at that deadline ends
just below the victim's accuracy: at that corner it is the only one that may serve. Bisecting the
deadline at that floor ends just above what the victim takes; just below begins the next one's
turn. An attacker sees whether there was an answer; `pinned` is scored afterwards.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from serve.audit.prober import Probe, Prober

_FLOOR_STEP = 0.0005
_DEADLINE_RATIO = 1.03
_LONGEST_MS, _SHORTEST_MS = 2000.0, 1.0
_LEAST_FLOOR = 0.5
_FIRST_WIDTH, _GROWTH = 0.02, 3.0
_LARGEST_RATIO = 8.0
_CHECKS = 6
_PINNED = 0.999


class Corner(NamedTuple):
    """Where a bisection ended, after how many queries in all, and what answered there."""

    asked: Probe
    queries: int
    share: float
    subnet_id: str


async def fingerprint(
    prober: Prober, images: np.ndarray, *, most_queries: int, most_subnets: int
) -> dict[str, Any]:
    """Walk the front from the most accurate subnet down; return the record of it."""
    walk = _Bisection(prober, images)
    corners: list[Corner] = []
    ceiling, longest_ms = 1.0, _LONGEST_MS
    while prober.num_queries < most_queries and ceiling > _LEAST_FLOOR:
        corner = await walk.corner(ceiling, longest_ms)
        if corner is None:
            break
        if not corners or corner.subnet_id != corners[-1].subnet_id:
            corners.append(corner)
        if len({one.subnet_id for one in corners}) == most_subnets:
            break
        shortest_ms = await walk.shortest_ms(corner.asked)
        ceiling = min(1.0, corner.asked.min_accuracy + _FLOOR_STEP)
        longest_ms = min(shortest_ms, longest_ms) / _DEADLINE_RATIO
    pinned = {corner.subnet_id for corner in corners if corner.share >= _PINNED}
    first = corners[0] if corners else None
    is_one = first is not None and first.share >= _PINNED
    return {
        "queries_one": first.queries if is_one and first is not None else None,
        "queries_all": prober.num_queries if len(pinned) == most_subnets else None,
        "queries_asked": prober.num_queries,
        "pinned": len(pinned),
        "subnets": most_subnets,
        "corners": [
            {
                "min_accuracy": corner.asked.min_accuracy,
                "slo_ms": corner.asked.slo_ms,
                "share": corner.share,
                "subnet": corner.subnet_id,
            }
            for corner in corners
        ],
    }


class _Bisection:
    """The bisections, with one image after the other."""

    def __init__(self, prober: Prober, images: np.ndarray) -> None:
        self._prober = prober
        self._images = images
        self._at = 0

    async def corner(self, ceiling: float, slo_ms: float) -> Corner | None:
        """Return the highest floor below `ceiling` that is served within a deadline.

        The next subnet is near: the bracket grows downwards from the ceiling, then it is halved.
        """
        low, width = ceiling, _FIRST_WIDTH
        while True:
            high, low = low, max(_LEAST_FLOOR, ceiling - width)
            if await self._is_answered(Probe(low, slo_ms)):
                break
            if low == _LEAST_FLOOR:
                return None
            width *= _GROWTH
        while high - low > _FLOOR_STEP:
            middle = (low + high) / 2
            if await self._is_answered(Probe(middle, slo_ms)):
                low = middle
            else:
                high = middle
        asked = Probe(low, slo_ms)
        served = [(await self._ask(asked)).subnet_id for _ in range(_CHECKS)]
        subnet_id, count = (
            Counter(filter(None, served)).most_common(1)[0] if any(served) else ("", 0)
        )
        return Corner(asked, self._prober.num_queries, count / _CHECKS, subnet_id)

    async def shortest_ms(self, asked: Probe) -> float:
        """Return the shortest deadline at which a floor is served, within a few percent.

        What is refused once may have waited at the door: it is asked again.
        """
        low = high = float(asked.slo_ms or _LONGEST_MS)
        ratio = _DEADLINE_RATIO**2
        while await self._is_feasible(asked._replace(slo_ms=low / ratio)):
            low = high = low / ratio
            ratio = min(ratio**2, _LARGEST_RATIO)
            if high < _SHORTEST_MS:
                return high
        low = high / ratio
        while high / low > _DEADLINE_RATIO:
            middle = (low * high) ** 0.5
            if await self._is_feasible(asked._replace(slo_ms=middle)):
                high = middle
            else:
                low = middle
        return high

    async def _is_feasible(self, asked: Probe) -> bool:
        return await self._is_answered(asked) or await self._is_answered(asked)

    async def _is_answered(self, asked: Probe) -> bool:
        return (await self._ask(asked)).is_answered

    async def _ask(self, asked: Probe) -> Any:
        self._at += 1
        return await self._prober.ask(self._images[self._at % len(self._images)], asked)
