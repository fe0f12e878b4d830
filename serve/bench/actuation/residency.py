"""The SGS part of `supernet bench actuation`: streams of the six OFA-ResNet50 subnets.

Each policy says what to keep in a cache of 40 % of the supernet's bytes. For every set that it
keeps, the set is loaded into the real cache and the latency of each subnet is measured against
views, interleaved; loading is charged with the measured time of packing each slice. Pairs of set
and subnet that occur less than `_RARE` times are taken from the cost model. Beside the policies
stands a cache without limit that holds every folded slice, loading not charged: what residency
could give at most.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

import numpy as np
import torch
from subnetact.cpu.packed_supernet import PackedSupernet
from subnetact.cpu.savings import measure_savings

from serve.bench.actuation.six_subnets import SIX_SUBNETS
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
from subnetact.cache import SliceKey, SubgraphCache
from subnetact.norms import FoldedNorms
from subnetact.profiling.sushi_encoding import encode, layers_of
from supernet.definition import SupernetDefinition

_BUDGET = 0.4
_QUERIES, _PHASE, _DOMINANT = 1200, 200, 0.8
_RARE = 10
_REPEATS = 3


def residency_rows(
    definition: SupernetDefinition,
    state: Mapping[str, torch.Tensor],
    *,
    batch_sizes: Sequence[int] = (1, 4),
    tell: Tell = print,
) -> list[Row]:
    """Measure both streams at each batch size, one thread; rows of ratios to no cache."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for batch_size in batch_sizes:
        table = _ResidencyTable(definition, state, batch_size)
        for name, stream in streams(list(table.base_s)).items():
            rows += _rows_of(table, name, stream, tell)
    return rows


def streams(subnet_ids: Sequence[str], seed: int = 0) -> dict[str, list[str]]:
    """Return the two streams: i.i.d. uniform, and phases with a dominant subnet each."""
    rng = np.random.default_rng(seed)
    uniform = [subnet_ids[int(i)] for i in rng.integers(len(subnet_ids), size=_QUERIES)]
    phases: list[str] = []
    for leader in rng.permutation(len(subnet_ids))[: _QUERIES // _PHASE].tolist():
        for _ in range(_PHASE):
            other = int(rng.integers(len(subnet_ids)))
            phases.append(subnet_ids[leader if rng.random() < _DOMINANT else other])
    return {"iid": uniform, "phases": phases}


class _ResidencyTable:
    """The six subnets at one batch size: savings, base latencies, latency beside a set."""

    def __init__(
        self, definition: SupernetDefinition, state: Mapping[str, torch.Tensor], batch_size: int
    ):
        total = sum(t.nbytes for n, t in state.items() if not n.endswith("num_batches_tracked"))
        self.batch_size = batch_size
        self.budget_bytes = int(_BUDGET * total)
        rng = np.random.default_rng(0)
        norms = FoldedNorms(definition, state)
        self.net = PackedSupernet(definition, state, norms, SubgraphCache(self.budget_bytes))
        self.views = PackedSupernet(definition, state, norms, SubgraphCache(0))
        self.unlimited = PackedSupernet(definition, state, norms, SubgraphCache())
        for arch in SIX_SUBNETS.values():
            statistics = {
                name: torch.from_numpy(rng.uniform(0.5, 1.5, shape).astype(np.float32))
                for name, shape in definition.buffer_shapes(arch).items()
                if not name.endswith("num_batches_tracked")
            }
            for net in (self.net, self.views, self.unlimited):
                net.register(arch, statistics)
            self.unlimited.load(self.unlimited.slices(arch.subnet_id, "folded"))
        self.inputs = {
            arch.subnet_id: torch.rand(definition.example_input(arch, batch_size).shape).contiguous(
                memory_format=torch.channels_last
            )
            for arch in SIX_SUBNETS.values()
        }
        self.savings, self.slices = measure_savings(
            self.net, self.net.subnet_ids, batch_size=batch_size
        )
        self.base_s = {i: median(self._time(self.views, i) for _ in range(4)) for i in self.inputs}
        self._ratio: dict[tuple[Keys, str], float] = {}

    def encodings(self) -> dict[str, np.ndarray]:
        """Kernels and channels per layer of each subnet."""
        layers = layers_of(self.slices)
        return {
            i: encode((form.key for form in self.net.slices(i, "shared")), layers)
            for i in self.base_s
        }

    def subgraphs(self) -> list[EncodedSubgraph]:
        """SushiSched's candidates: filled for each subnet and for each pair of them."""
        ids = list(self.base_s)
        mixes = [{i: 1.0} for i in ids]
        mixes += [{a: 0.5, b: 0.5} for a, b in itertools.combinations(ids, 2)]
        sets = dict.fromkeys(self.savings.fill(mix, self.budget_bytes) for mix in mixes)
        layers = layers_of(self.slices)
        return [
            EncodedSubgraph(encode((k for k in self.slices if k in keys), layers), keys)
            for keys in sets
        ]

    def ratio(self, keys: Keys, subnet_id: str) -> float:
        """Measured latency beside a resident set, over views; each pair measured once."""
        known = self._ratio.get((keys, subnet_id))
        if known is not None:
            return known
        wanted: frozenset[SliceKey] = keys  # type: ignore[assignment]
        if self.net.cache.resident != wanted:
            self.net.evict_others(wanted)
            self.net.load(self.slices[key] for key in wanted)
            assert self.net.cache.resident == wanted, "a filled set fits the budget"
        ratio = self._over_views(self.net, subnet_id)
        self._ratio[keys, subnet_id] = ratio
        return ratio

    def best_ratio(self, mix: Mapping[str, float]) -> float:
        """Mean latency of a mix with everything resident, over views."""
        times_s = {i: share * self.base_s[i] for i, share in mix.items()}
        packed_s = sum(
            self._over_views(self.unlimited, i) * time_s for i, time_s in times_s.items()
        )
        return packed_s / sum(times_s.values())

    def _over_views(self, net: PackedSupernet, subnet_id: str) -> float:
        """Latency over that of views, interleaved, medians."""
        samples: list[tuple[float, float]] = []
        for _ in range(1 + _REPEATS):
            samples.append((self._time(net, subnet_id), self._time(self.views, subnet_id)))
        packed_s, views_s = (median(column) for column in zip(*samples[1:], strict=True))
        return packed_s / views_s

    def _time(self, net: PackedSupernet, subnet_id: str) -> float:
        start_s = time.perf_counter()
        net.run(subnet_id, self.inputs[subnet_id])
        return time.perf_counter() - start_s


def _rows_of(table: _ResidencyTable, name: str, stream: list[str], tell: Tell) -> list[Row]:
    counts = Counter(stream)
    mix = {i: n / len(stream) for i, n in counts.items()}
    oracle = table.savings.fill(mix, table.budget_bytes)
    policies: dict[str, ResidencyPolicy] = {
        "value_per_byte": ValuePerByte(table.savings, table.budget_bytes),
        "nearest_average": NearestAverage(table.encodings(), table.subgraphs()),
        "static_oracle": FixedResidency(oracle),
    }
    no_cache_s = sum(table.base_s[i] * n for i, n in counts.items())
    best = table.best_ratio(mix)
    tell(f"  sgs {name} b{table.batch_size} unlimited: {best:.3f}")
    rows: list[Row] = [
        row(
            _figure(name, table.batch_size, "unlimited"),
            best,
            "ratio",
            f"every folded slice resident: {table.unlimited.cache.held_bytes} bytes",
        )
    ]
    for policy_name, policy in policies.items():
        served = list(_residency_along(stream, policy))
        loads_s = _load_s(served, table.savings)
        latency_s = sum(
            n * _latency_s(table, keys, i, n) for (keys, i), n in Counter(served).items()
        )
        modelled = run_stream(stream, table.base_s, table.savings, _again(policy_name, table, mix))
        sets = len(dict.fromkeys(keys for keys, _ in served))
        held = max(table.savings.num_bytes(keys) for keys, _ in served)
        ratio = (latency_s + loads_s) / no_cache_s
        model_ratio = modelled.mean_latency_s * len(stream) / no_cache_s
        rows.append(
            row(
                _figure(name, table.batch_size, policy_name),
                ratio,
                "ratio",
                f"{len(stream)} batches, budget {table.budget_bytes} bytes, held up to "
                f"{held}, {sets} sets, loading {loads_s / len(stream) * 1e3:.3f} ms a batch; the "
                f"cost model says {model_ratio:.3f}",
            )
        )
        tell(f"  sgs {name} b{table.batch_size} {policy_name}: {ratio:.3f} ({model_ratio:.3f})")
    return rows


def _figure(stream: str, batch_size: int, policy: str) -> str:
    return f"actuation/ofa_resnet50/sgs/{stream}/b{batch_size}/t1/{policy}_over_no_cache"


def _again(name: str, table: _ResidencyTable, mix: Mapping[str, float]) -> ResidencyPolicy:
    """Make a fresh policy of the same kind."""
    if name == "value_per_byte":
        return ValuePerByte(table.savings, table.budget_bytes)
    if name == "nearest_average":
        return NearestAverage(table.encodings(), table.subgraphs())
    return FixedResidency(table.savings.fill(mix, table.budget_bytes))


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


def _latency_s(table: _ResidencyTable, keys: Keys, subnet_id: str, times: int) -> float:
    if not keys:
        return table.base_s[subnet_id]
    if times < _RARE:
        return table.base_s[subnet_id] - table.savings.saved_s(keys, subnet_id)
    return table.base_s[subnet_id] * table.ratio(keys, subnet_id)
