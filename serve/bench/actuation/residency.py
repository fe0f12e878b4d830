"""The residency part of `supernet bench actuation`: streams of subnets under a byte budget.

SubGraph Stationary on OFA-ResNet50's six subnets (SUSHI, MLSys'23): a budget of 40 % of the bytes
of all sessions, in one precision. Each policy says what to keep. For every set that it keeps, the
set is loaded into the executor's store and the latency of each subnet in it is measured against
views, interleaved; what is not in it is served by views. Loading is charged with the measured time
of loading each session, from a warm cache. Pairs of set and subnet that occur less than `_RARE`
times are taken from the cost model. Beside the policies stands a store without limit, loading not
charged: what residency could give at most.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median

import numpy as np

from serve.bench.actuation.rounds import paired_ratio, rotated
from serve.bench.rows import Row, Tell, row
from slackfit.residency import (
    EncodedSubgraph,
    FixedResidency,
    Keys,
    NearestAverage,
    ResidencyPolicy,
    Savings,
    ValuePerByte,
    run_stream,
)
from subnetact.cpu.graph_executor import GraphExecutor, Views
from subnetact.profiling.sushi_encoding import Widths, encode, layers_of
from supernet.served_form import ServedForm

_BUDGET = 0.4
_QUERIES, _PHASE, _DOMINANT = 1200, 200, 0.8
_RARE = 10
_ROUNDS = (6, 60)


def residency_rows(
    net: str,
    precision: str,
    executor: GraphExecutor,
    views: Views,
    widths: Mapping[str, Widths],
    *,
    at_least_s: float = 0.5,
    tell: Tell = print,
) -> list[Row]:
    """Measure both streams of an executor without a budget, batch 1; rows of ratios to views.

    `widths` are those of each of the executor's subnets.
    """
    table = ResidencyTable(executor, views, widths, at_least_s)
    rows: list[Row] = []
    for name, stream in streams(list(table.base_s)).items():
        rows += _rows_of(f"{net}/sgs/{precision}/{name}", table, stream, tell)
    return rows


def streams(subnet_ids: Sequence[str], seed: int = 0) -> dict[str, list[str]]:
    """Return the two streams: i.i.d. uniform, and phases with a dominant subnet each."""
    rng = np.random.default_rng(seed)
    uniform = [subnet_ids[int(i)] for i in rng.integers(len(subnet_ids), size=_QUERIES)]
    phases: list[str] = []
    leaders = [*rng.permutation(len(subnet_ids)).tolist()] * (_QUERIES // _PHASE)
    for leader in leaders[: _QUERIES // _PHASE]:
        for _ in range(_PHASE):
            other = int(rng.integers(len(subnet_ids)))
            phases.append(subnet_ids[leader if rng.random() < _DOMINANT else other])
    return {"iid": uniform, "phases": phases}


class ResidencyTable:
    """An executor's subnets at batch 1: savings, latencies on views, latency beside a set."""

    def __init__(
        self,
        executor: GraphExecutor,
        views: Views,
        widths: Mapping[str, Widths],
        at_least_s: float,
    ):
        self._executor = executor
        self._views = views
        self._widths = widths
        self._at_least_s = at_least_s
        self._samples = executor.sample.zeros(1)
        self.store = executor.store
        self.all_bytes = sum(self.store.num_bytes.values())
        self.budget_bytes = int(_BUDGET * self.all_bytes)
        self.store.evict_others(())
        self.savings = executor.measure_savings()
        self.base_s = self._on_views_s()
        self._ratio: dict[tuple[Keys, str], float] = {}

    def nearest_average(self) -> NearestAverage:
        """Return SushiSched; its candidates are filled for each subnet and for each pair."""
        layers = layers_of(self._widths.values())
        ids = list(self.base_s)
        mixes = [{i: 1.0} for i in ids]
        mixes += [{a: 0.5, b: 0.5} for a, b in itertools.combinations(ids, 2)]
        sets = dict.fromkeys(self.savings.fill(mix, self.budget_bytes) for mix in mixes)
        subgraphs = [
            EncodedSubgraph(encode((self._widths[str(key)] for key in keys), layers), keys)
            for keys in sets
        ]
        return NearestAverage({i: encode([self._widths[i]], layers) for i in ids}, subgraphs)

    def best_set(self, mix: Mapping[str, float]) -> Keys:
        """Return the set within the budget that saves most under a mix: all sets are tried."""
        candidates = list(self.savings.candidates)
        sets = (
            frozenset(keys)
            for size in range(len(candidates) + 1)
            for keys in itertools.combinations(candidates, size)
        )
        fitting = (keys for keys in sets if self.savings.num_bytes(keys) <= self.budget_bytes)
        return max(fitting, key=lambda keys: self.savings.expected_s(keys, mix))

    def ratio(self, keys: Keys, subnet_id: str) -> float:
        """Measured latency beside a resident set, over views; each pair is measured once."""
        if subnet_id not in keys:
            return 1.0
        if (keys, subnet_id) not in self._ratio:
            if self.store.resident != keys:
                self.store.evict_others(keys)
                for key in keys:
                    self.store.load(key)
                assert self.store.resident == keys, "every candidate was opened before"
            self._ratio[keys, subnet_id] = self._over_views(subnet_id)
        return self._ratio[keys, subnet_id]

    def _over_views(self, subnet_id: str) -> float:
        slots = [self._executor.stage(self._samples)]
        calls: dict[str, Callable[[], object]] = {
            "resident": lambda: self._executor.launch(subnet_id, slots),
            "views": self._on_views(subnet_id),
        }
        return paired_ratio(rotated(calls, self._at_least_s, _ROUNDS), "resident", "views")

    def _on_views_s(self) -> dict[str, float]:
        """Seconds of each subnet on views; all in turn, as they weigh against each other."""
        calls = {i: self._on_views(i) for i in self._executor.subnet_ids}
        samples_s = rotated(calls, len(calls) * self._at_least_s, _ROUNDS)
        return {i: median(taken_s) for i, taken_s in samples_s.items()}

    def _on_views(self, subnet_id: str) -> Callable[[], object]:
        float_id = ServedForm.parse(subnet_id).subnet_id
        return lambda: self._views.run(float_id, self._samples)


def _rows_of(figure: str, table: ResidencyTable, stream: list[str], tell: Tell) -> list[Row]:
    counts = Counter(stream)
    mix = {i: n / len(stream) for i, n in counts.items()}
    no_cache_s = sum(table.base_s[i] * n for i, n in counts.items())
    oracle = table.best_set(mix)
    policies: dict[str, Callable[[], ResidencyPolicy]] = {
        "value_per_byte": lambda: ValuePerByte(table.savings, table.budget_bytes),
        "nearest_average": table.nearest_average,
        "static_oracle": lambda: FixedResidency(oracle),
    }
    everything = frozenset(table.savings.candidates)
    best = sum(table.base_s[i] * n * table.ratio(everything, i) for i, n in counts.items())
    measured = {"unlimited": (best / no_cache_s, f"all sessions resident: {table.all_bytes} bytes")}
    for name, make in policies.items():
        measured[name] = _along(table, stream, make, no_cache_s)
    rows: list[Row] = []
    for name, (ratio, detail) in measured.items():
        rows.append(row(f"actuation/{figure}/b1/t1/{name}_over_no_cache", ratio, "ratio", detail))
        tell(f"  {figure} {name}: {ratio:.3f}")
    return rows


def _along(
    table: ResidencyTable,
    stream: Sequence[str],
    make: Callable[[], ResidencyPolicy],
    no_cache_s: float,
) -> tuple[float, str]:
    """Return one policy's time along a stream, loading included, over views; and the detail."""
    served = Counter(pairs := list(_residency_along(stream, make())))
    latency_s = sum(n * _latency_s(table, keys, i, n) for (keys, i), n in served.items())
    loads_s = _load_s(pairs, table.savings)
    model = run_stream(stream, table.base_s, table.savings, make())
    hits = sum(n for (keys, i), n in served.items() if i in keys)
    held = max(table.savings.num_bytes(keys) for keys, _ in served)
    sets = len({keys for keys, _ in served})
    detail = (
        f"{len(stream)} batches, hit rate {hits / len(stream):.3f}, budget {table.budget_bytes} "
        f"bytes, held up to {held}, {sets} sets, loading {loads_s / len(stream) * 1e3:.3f} ms a "
        f"batch; the cost model says {model.mean_latency_s * len(stream) / no_cache_s:.3f}"
    )
    return (latency_s + loads_s) / no_cache_s, detail


def _residency_along(stream: Sequence[str], policy: ResidencyPolicy) -> Iterator[tuple[Keys, str]]:
    """Yield (what is resident, subnet) for every batch."""
    resident: Keys = frozenset()
    for subnet_id in stream:
        yield resident, subnet_id
        wanted = policy.observe(subnet_id)
        if wanted is not None:
            resident = wanted


def _load_s(served: Sequence[tuple[Keys, str]], savings: Savings) -> float:
    sets = [keys for keys, _ in itertools.groupby(served, key=lambda pair: pair[0])]
    pairs = itertools.pairwise([frozenset(), *sets])
    return sum(savings.load_s(after - before) for before, after in pairs)


def _latency_s(table: ResidencyTable, keys: Keys, subnet_id: str, times: int) -> float:
    """Return a subnet's latency beside a set, which occurs `times` times."""
    if times < _RARE:
        return table.base_s[subnet_id] - table.savings.saved_s(keys, subnet_id)
    return table.base_s[subnet_id] * table.ratio(keys, subnet_id)
