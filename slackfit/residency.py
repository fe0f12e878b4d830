"""Which weight slices to keep resident: SUSHI's policy, and one that counts seconds per byte.

A `Candidate` is a slice that could be resident: its bytes, the seconds that loading it takes, and
the seconds that it saves each subnet per batch. `ValuePerByte` keeps what saves most under the
subnet mix that it observes, and changes it when the expected gain exceeds the cost of loading.
`NearestAverage` is SushiSched (MLSys 2023): every Q queries the candidate subgraph whose encoding
is nearest to the average encoding of the subnets served since. Pure: the simulator (`run_stream`)
and the real cache are driven by the same objects. No clock, no tensor.

Two slices of one site (shared and folded) exclude each other for a subnet: the better one counts.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Keys = frozenset[Hashable]
Vector = npt.NDArray[np.float64]


class Candidate(NamedTuple):
    """A slice that could be resident; `saved_s` is per subnet and batch, absent where unused."""

    key: Hashable
    site: Hashable
    num_bytes: int
    load_s: float
    saved_s: Mapping[str, float]


class Savings:
    """The candidates, what a set of them saves, and the best set for a mix of subnets."""

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        """Take the candidates. Raises ValueError for a repeated key or a size below one byte."""
        self.candidates: dict[Hashable, Candidate] = {}
        self._users: dict[str, dict[int, Candidate]] = {}  # of a subnet, by their place
        for place, candidate in enumerate(candidates):
            if candidate.key in self.candidates:
                raise ValueError(f"candidate {candidate.key!r} is given twice")
            if candidate.num_bytes < 1:
                raise ValueError(f"candidate {candidate.key!r} has {candidate.num_bytes} bytes")
            self.candidates[candidate.key] = candidate
            for subnet_id in candidate.saved_s:
                self._users.setdefault(subnet_id, {})[place] = candidate

    def num_bytes(self, keys: Iterable[Hashable]) -> int:
        """Bytes of a set of slices."""
        return sum(self.candidates[key].num_bytes for key in keys)

    def load_s(self, keys: Iterable[Hashable]) -> float:
        """Seconds to load a set of slices."""
        return sum(self.candidates[key].load_s for key in keys)

    def saved_s(self, resident: Iterable[Hashable], subnet_id: str) -> float:
        """Seconds per batch that `resident` saves one subnet."""
        return self._saved_s(frozenset(resident), subnet_id)

    def _saved_s(self, resident: Keys, subnet_id: str) -> float:
        best: dict[Hashable, float] = {}
        for candidate in self._users.get(subnet_id, {}).values():
            saved = candidate.saved_s[subnet_id]
            if candidate.key in resident and saved > best.get(candidate.site, 0.0):
                best[candidate.site] = saved
        return sum(best.values())

    def expected_s(self, resident: Iterable[Hashable], mix: Mapping[str, float]) -> float:
        """Seconds saved per batch on average; `mix` gives each subnet's share."""
        keys = frozenset(resident)
        return sum(share * self._saved_s(keys, subnet_id) for subnet_id, share in mix.items())

    def fill(
        self,
        mix: Mapping[str, float],
        budget_bytes: int,
        *,
        resident: Keys = frozenset(),
        horizon: float = float("inf"),
    ) -> Keys:
        """Return the slices that save most under `mix` within the budget.

        Greedy by seconds saved per byte, each slice valued beside those chosen before it. What is
        not in `resident` costs its loading, spread over `horizon` batches. O(n log n) and a
        little more where slices overlap, n those that save a subnet of the mix time; the greedy set
        misses the best one by at most what one slice is worth, since a slice is small against the
        budget.
        """
        best: dict[tuple[Hashable, str], float] = {}

        def value(candidate: Candidate) -> float:
            gain = sum(
                mix[i] * max(0.0, saved - best.get((candidate.site, i), 0.0))
                for i, saved in candidate.saved_s.items()
                if i in mix
            )
            cost = 0.0 if candidate.key in resident else candidate.load_s / horizon
            return (gain - cost) / candidate.num_bytes

        order = list(self.candidates.values())
        places = sorted({place for i in mix for place in self._users.get(i, ())})
        heap = [(-v, n) for n in places if (v := value(order[n])) > 0]
        heapq.heapify(heap)
        chosen: set[Hashable] = set()
        left = budget_bytes
        while heap:
            promised, n = heapq.heappop(heap)
            candidate = order[n]
            now = value(candidate)
            if now <= 0 or candidate.num_bytes > left:
                continue
            if -now > promised + 1e-18:  # worth less since it was queued: queue it anew
                heapq.heappush(heap, (-now, n))
                continue
            chosen.add(candidate.key)
            left -= candidate.num_bytes
            for i, saved in candidate.saved_s.items():
                place = (candidate.site, i)
                best[place] = max(best.get(place, 0.0), saved)
        return self._without_idle(chosen, mix)

    def _without_idle(self, chosen: set[Hashable], mix: Mapping[str, float]) -> Keys:
        """Leave out what a later choice made useless to every subnet of the mix."""
        used: set[Hashable] = set()
        for i in (i for i, share in mix.items() if share > 0):
            best: dict[Hashable, tuple[float, Hashable]] = {}
            for candidate in self._users.get(i, {}).values():
                saved = candidate.saved_s[i]
                if candidate.key in chosen and saved > best.get(candidate.site, (0.0, None))[0]:
                    best[candidate.site] = (saved, candidate.key)
            used.update(key for _, key in best.values())
        return frozenset(used)


class ResidencyPolicy(Protocol):
    """Sees every batch's subnet; says when another set of slices should be resident."""

    def observe(self, subnet_id: str) -> Keys | None:
        """Note one batch; return the keys to be resident from now on, None: as they are."""
        ...


class ValuePerByte:
    """Keeps what saves most seconds under the observed mix; see the module.

    The mix is counted since the last change of it. A change is when the last queries (an
    exponential average of half-life `recent`) differ from the counted mix by more than `change`
    in total variation; then the recent mix is where counting starts anew. Every `every` batches
    the set is planned, with the loading spread over as many batches as the mix has lasted.
    """

    def __init__(
        self,
        savings: Savings,
        budget_bytes: int,
        *,
        recent: float = 8.0,
        change: float = 0.45,
        every: int = 5,
        resident: Keys = frozenset(),
    ) -> None:
        """Start with `resident`, nothing unless given. Raises ValueError for a bad parameter."""
        for name, number in (("recent", recent), ("change", change), ("every", every)):
            if not number > 0:
                raise ValueError(f"{name} is {number}, allowed above 0")
        self._savings = savings
        self._budget_bytes = budget_bytes
        self._decay = 0.5 ** (1.0 / recent)
        self._change = change
        self._every = every
        self._recent: dict[str, float] = {}
        self._counts: dict[str, float] = {}
        self._seen = 0
        self._resident = resident

    @property
    def mix(self) -> dict[str, float]:
        """Each subnet's share of the batches since the mix last changed."""
        return _shares(self._counts)

    @property
    def lasted(self) -> float:
        """How many batches the mix has lasted; as many again are taken to come, twice over."""
        return sum(self._counts.values())

    def observe(self, subnet_id: str) -> Keys | None:
        """See `ResidencyPolicy`."""
        for i in self._recent:
            self._recent[i] *= self._decay
        self._recent[subnet_id] = self._recent.get(subnet_id, 0.0) + 1.0
        self._counts[subnet_id] = self._counts.get(subnet_id, 0.0) + 1.0
        self._seen += 1
        if _distance(_shares(self._recent), self.mix) > self._change:
            self._counts = dict(self._recent)
        elif self._seen % self._every:
            return None
        return self._plan()

    def _plan(self) -> Keys | None:
        mix, lasted = self.mix, self.lasted
        wanted = self._savings.fill(
            mix, self._budget_bytes, resident=self._resident, horizon=2.0 * lasted
        )
        gain_s = self._savings.expected_s(wanted, mix) - self._savings.expected_s(
            self._resident, mix
        )
        if wanted == self._resident or (
            gain_s * 2.0 * lasted <= self._savings.load_s(wanted - self._resident)
        ):
            return None
        self._resident = wanted
        return wanted


class EncodedSubgraph(NamedTuple):
    """A candidate of SushiSched: its encoding (kernels and channels per layer) and its slices."""

    encoding: Vector
    keys: Keys


class NearestAverage:
    """SushiSched's choice of what to keep; see the module. O(subgraphs x layers) every `period`."""

    def __init__(
        self,
        encodings: Mapping[str, Vector],
        subgraphs: Sequence[EncodedSubgraph],
        *,
        period: int = 8,
    ) -> None:
        """Take the subnets' encodings and the candidates. Raises ValueError when there is none."""
        if not subgraphs:
            raise ValueError("SushiSched needs at least one candidate subgraph")
        if period < 1:
            raise ValueError(f"period is {period}, allowed 1 or more")
        self._encodings = encodings
        self._subgraphs = subgraphs
        self._period = period
        self._sum: Vector = np.zeros_like(subgraphs[0].encoding)
        self._seen = 0
        self._current = -1

    def observe(self, subnet_id: str) -> Keys | None:
        """See `ResidencyPolicy`."""
        self._sum = self._sum + self._encodings[subnet_id]
        self._seen += 1
        if self._seen < self._period:
            return None
        average = self._sum / self._seen
        self._sum, self._seen = np.zeros_like(average), 0
        distances = [float(np.linalg.norm(s.encoding - average)) for s in self._subgraphs]
        nearest = int(np.argmin(distances))
        if nearest == self._current:
            return None
        self._current = nearest
        return self._subgraphs[nearest].keys


class FixedResidency:
    """One set from the first batch on: the static oracle, when it was filled for the true mix."""

    def __init__(self, keys: Keys) -> None:
        self._keys: Keys | None = keys

    def observe(self, subnet_id: str) -> Keys | None:
        """See `ResidencyPolicy`."""
        keys, self._keys = self._keys, None
        return keys


@dataclass(frozen=True, slots=True)
class StreamResult:
    """What a policy made of a stream: means over its batches, loading included."""

    mean_latency_s: float
    mean_load_s: float
    num_changes: int
    peak_bytes: int


def run_stream(
    stream: Sequence[str],
    base_s: Mapping[str, float],
    savings: Savings,
    policy: ResidencyPolicy | None,
) -> StreamResult:
    """Serve a stream of subnets one after another on the cost model (None: nothing resident).

    Loading is charged to the batch after which it happens.
    """
    resident: Keys = frozenset()
    busy_s = load_s = 0.0
    changes = peak_bytes = 0
    latency_s: dict[str, float] = {}
    for subnet_id in stream:
        if subnet_id not in latency_s:
            latency_s[subnet_id] = base_s[subnet_id] - savings.saved_s(resident, subnet_id)
        busy_s += latency_s[subnet_id]
        wanted = None if policy is None else policy.observe(subnet_id)
        if wanted is not None:
            load_s += savings.load_s(wanted - resident)
            resident = wanted
            latency_s.clear()
            changes += 1
            peak_bytes = max(peak_bytes, savings.num_bytes(resident))
    total = len(stream)
    return StreamResult((busy_s + load_s) / total, load_s / total, changes, peak_bytes)


def _shares(counts: Mapping[str, float]) -> dict[str, float]:
    total = sum(counts.values())
    return {i: count / total for i, count in counts.items()}


def _distance(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Total variation between two mixes."""
    return 0.5 * sum(abs(a.get(i, 0.0) - b.get(i, 0.0)) for i in a.keys() | b.keys())
