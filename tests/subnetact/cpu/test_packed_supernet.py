"""Packed slices change cost, never results: held equal to the extracted static subnet."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from subnetact.cache import SubgraphCache
from subnetact.cpu.packed_supernet import PackedSupernet
from subnetact.cpu.packing import is_available
from subnetact.norms import FoldedNorms
from subnetact.program import Program
from supernet import Arch, SupernetDefinition, calibrate, define_supernet, extract
from supernet.families.resnet import ResNetConfig

VARIANTS = (
    "resnet_tiny",
    "resnet20_cifar",
    "resnet50",
    "ofa_resnet50",
    "ofa_mobilenet_v3_w1.0",
    "ofa_proxyless_w1.0",
    "tf_mobilenetv3_large_100",
    "tf_efficientnet_lite0",
    "vit_tiny_patch16_224",
    "bert_tiny",
)
TOLERANCE = {"views": 1e-5, "shared": 1e-5, "folded": 2e-4}  # relative to the largest logit

needs_packing = pytest.mark.skipif(not is_available(), reason="this torch packs no oneDNN weights")


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


class Zoo:
    """A supernet with random weights, and the statistics of any of its subnets."""

    def __init__(self, definition: SupernetDefinition):
        self.definition = definition
        self.generator = torch.Generator().manual_seed(0)
        self.state = {
            name: self._tensor(name, shape)
            for name, shape in {
                **definition.parameter_shapes(),
                **definition.buffer_shapes(),
            }.items()
        }
        self.norms = FoldedNorms(definition, self.state)

    def _tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name.endswith("num_batches_tracked"):
            return torch.zeros(shape, dtype=torch.long)
        if name.endswith("running_var"):
            return torch.rand(shape, generator=self.generator) + 0.5
        fan_in = max(1, int(np.prod(shape[1:])))
        drawn = torch.randn(shape, generator=self.generator)
        if len(shape) > 1:
            return drawn * (2 / fan_in) ** 0.5
        is_fifth = torch.arange(shape[0]) % 5 == 4  # trained scales are of either sign
        return (1 + 0.1 * drawn) * torch.where(is_fifth, -1.0, 1.0)

    def statistics(self, arch: Arch) -> dict[str, torch.Tensor]:
        return {
            name: self._tensor(name, shape)
            for name, shape in self.definition.buffer_shapes(arch).items()
            if not name.endswith("num_batches_tracked")
        }

    def calibrated(self, arch: Arch) -> dict[str, torch.Tensor]:
        """The subnet's own statistics: with drawn ones deep networks amplify rounding."""
        subnet = extract(self.state, self.definition, arch, self.statistics(arch))
        return calibrate(subnet, [self.input(arch, 4)])

    def input(self, arch: Arch, batch_size: int = 2) -> torch.Tensor:
        x = self.definition.example_input(arch, batch_size)
        if not x.is_floating_point():
            return torch.randint(5, 90, x.shape, generator=self.generator)
        x = torch.randn(x.shape, generator=self.generator)
        return x.contiguous(memory_format=torch.channels_last)

    def expected(
        self, arch: Arch, statistics: dict[str, torch.Tensor], x: torch.Tensor
    ) -> torch.Tensor:
        return extract(self.state, self.definition, arch, statistics)(x)


def difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference relative to the largest logit."""
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def small() -> Zoo:
    with torch.inference_mode():
        return Zoo(define_supernet("resnet_tiny"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_form_equals_the_extracted_subnet(variant: str) -> None:
    zoo = Zoo(define_supernet(variant))
    rng = np.random.default_rng(0)
    archs = [zoo.definition.space.smallest, zoo.definition.space.sample(rng)]
    for arch in archs:
        net = PackedSupernet(zoo.definition, zoo.state, zoo.norms, SubgraphCache())
        statistics = zoo.calibrated(arch)
        subnet_id = net.register(arch, statistics)
        x = zoo.input(arch)
        before = x.clone()
        expected = zoo.expected(arch, statistics, x)
        for packing, tolerance in TOLERANCE.items():
            if packing != "views":
                wanted = net.slices(subnet_id, packing)
                assert net.load(wanted) == len(wanted)
            got = net.run(subnet_id, x)
            assert difference(got, expected) <= tolerance, (packing, arch.subnet_id)
            assert torch.equal(got.argmax(1), expected.argmax(1)), (packing, arch.subnet_id)
        assert torch.equal(x, before), "the input was written over"


@needs_packing
@pytest.mark.parametrize("scale", [0.0, 1e-38])
def test_shared_slices_bear_scales_that_are_zero_or_nearly(scale: float) -> None:
    zoo = Zoo(define_supernet("resnet_tiny"))
    for name, tensor in zoo.state.items():
        if name.endswith(("bn1.weight", "bn2.weight")):
            tensor[::3] *= scale
    arch = zoo.definition.space.largest
    net = PackedSupernet(zoo.definition, zoo.state, zoo.norms, SubgraphCache())
    statistics = zoo.calibrated(arch)
    subnet_id = net.register(arch, statistics)
    net.load(net.slices(subnet_id, "shared"))
    x = zoo.input(arch)
    expected = zoo.expected(arch, statistics, x)
    assert difference(net.run(subnet_id, x), expected) <= TOLERANCE["shared"]


@needs_packing
@pytest.mark.parametrize("variant", ["ofa_resnet50", "tf_mobilenetv3_large_100"])
def test_every_convolution_is_a_site_that_takes_its_norm(variant: str) -> None:
    zoo = Zoo(define_supernet(variant))
    net = PackedSupernet(zoo.definition, zoo.state, zoo.norms, SubgraphCache())
    arch = zoo.definition.space.largest
    subnet_id = net.register(arch, zoo.statistics(arch))
    module = zoo.definition.on_meta(arch)
    convs = {n for n, m in module.named_modules() if isinstance(m, torch.nn.Conv2d)}
    norms = {n for n, m in module.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    sites = [wanted.site for wanted in net.slices(subnet_id)]
    assert {site.layer for site in sites} == convs
    assert {site.norm for site in sites} - {None} == norms
    assert sum(site.geometry.macs for site in sites) > 0


@needs_packing
def test_a_shared_slice_serves_every_subnet_that_uses_it(small: Zoo) -> None:
    net = PackedSupernet(small.definition, small.state, small.norms, SubgraphCache())
    space = small.definition.space
    wide, deep = space.smallest, space.uniform(depth=2, width=0.5, expand=space.expand[0])
    ids = [net.register(arch, small.statistics(arch)) for arch in (wide, deep)]
    assert ids[0] != ids[1]
    mine, theirs = (net.slices(i, "shared") for i in ids)
    net.load(mine)
    held = net.cache.held_bytes
    common = {s.key for s in mine} & {s.key for s in theirs}
    assert common
    net.load(s for s in theirs if s.key in common)
    assert net.cache.held_bytes == held
    net.run(ids[1], small.input(deep))
    counts = net.cache.counts
    assert (counts.lookups, counts.hits) == (len(theirs), len(common))
    assert counts.hits + counts.misses == counts.lookups


@needs_packing
def test_actuating_a_resident_subnet_looks_up_nothing_per_layer(small: Zoo) -> None:
    net = PackedSupernet(small.definition, small.state, small.norms, SubgraphCache())
    archs = [small.definition.space.smallest, small.definition.space.largest]
    ids = [net.register(arch, small.statistics(arch)) for arch in archs]
    first = [net.actuate(i) for i in ids]
    assert [net.actuate(i) for i in ids] == first
    net.load(net.slices(ids[0]))
    changed = net.actuate(ids[0])
    assert changed is not first[0]
    assert changed.hits == changed.lookups
    assert net.actuate(ids[0]) is changed


@needs_packing
def test_evicted_bytes_count_until_the_last_reader_lets_go(small: Zoo) -> None:
    net = PackedSupernet(small.definition, small.state, small.norms, SubgraphCache())
    arch = small.definition.space.smallest
    subnet_id = net.register(arch, small.statistics(arch))
    wanted = net.slices(subnet_id)
    net.load(wanted)
    running = net.actuate(subnet_id)
    held = net.cache.held_bytes
    assert held == sum(s.num_bytes for s in wanted)
    net.cache.clear()
    assert net.cache.resident == frozenset()
    assert net.cache.held_bytes == held
    del running
    assert net.cache.held_bytes == 0


@needs_packing
def test_running_out_of_memory_is_served_by_views_with_one_warning(
    small: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise RuntimeError("could not create a memory object")

    net = PackedSupernet(small.definition, small.state, small.norms, SubgraphCache())
    arch = small.definition.space.smallest
    statistics = small.statistics(arch)
    subnet_id = net.register(arch, statistics)
    wanted = net.slices(subnet_id)
    monkeypatch.setattr("subnetact.cpu.packed_supernet.pack_folded", no_memory)
    with pytest.warns(RuntimeWarning, match="no memory to pack .* served as views") as seen:
        assert net.load(wanted) < len(wanted)
    assert len(seen) == 1
    assert net.cache.counts.failures == sum(s.key.owner is not None for s in wanted)
    x = small.input(arch)
    got = net.run(subnet_id, x)
    assert difference(got, small.expected(arch, statistics, x)) <= TOLERANCE["folded"]
    assert net.cache.held_bytes == sum(s.num_bytes for s in wanted if s.key.owner is None)


def test_without_packing_everything_runs_on_views(
    small: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subnetact.cpu.packed_supernet.is_available", lambda: False)
    net = PackedSupernet(small.definition, small.state, small.norms, SubgraphCache())
    arch = small.definition.space.largest
    statistics = small.statistics(arch)
    subnet_id = net.register(arch, statistics)
    assert net.slices(subnet_id) == ()
    x = small.input(arch)
    assert difference(net.run(subnet_id, x), small.expected(arch, statistics, x)) <= 1e-5


def test_programs_are_kept_for_the_last_used_subnets_only(small: Zoo) -> None:
    cache = SubgraphCache()
    net = PackedSupernet(small.definition, small.state, small.norms, cache, max_programs=2)
    archs = small.definition.space.ladder()[:3]
    statistics = {arch: small.statistics(arch) for arch in archs}
    ids = [net.register(arch, statistics[arch]) for arch in archs]
    first = net.actuate(ids[0])
    for i in ids[1:]:
        net.actuate(i)
    assert net.actuate(ids[0]) is not first
    x = small.input(archs[0])
    expected = small.expected(archs[0], statistics[archs[0]], x)
    assert difference(net.run(ids[0], x), expected) <= 1e-5


def test_wrong_arguments_are_refused(small: Zoo) -> None:
    net = PackedSupernet(small.definition, small.state, small.norms, SubgraphCache())
    with pytest.raises(KeyError, match="'d9' is not registered; registered: "):
        net.actuate("d9")
    with pytest.raises(ValueError, match="lack or misshape bn1"):
        net.register(small.definition.space.smallest, {})
    arch = small.definition.space.smallest
    subnet_id = net.register(arch, small.statistics(arch))
    with pytest.raises(ValueError, match="packing is 'packed', allowed folded, shared"):
        net.slices(subnet_id, "packed")
    with pytest.raises(ValueError, match="budget_bytes is -1, allowed 0 or more"):
        SubgraphCache(-1)


class Stress:
    """Two threads run batches on random subnets while a third loads and evicts slices."""

    def __init__(self, num_subnets: int):
        config = ResNetConfig(in_channels=1, resolution=8, widths=(8, 16), depths=(2, 2))
        zoo = Zoo(SupernetDefinition("resnet", config))
        rng = np.random.default_rng(0)
        drawn = {zoo.definition.space.sample(rng): None for _ in range(3 * num_subnets)}
        archs = list(drawn)[:num_subnets]
        assert len(archs) == num_subnets
        self.cache = SubgraphCache()
        self.net = PackedSupernet(
            zoo.definition, zoo.state, zoo.norms, self.cache, max_programs=num_subnets
        )
        statistics = {arch: zoo.statistics(arch) for arch in archs}
        self.ids = [self.net.register(arch, statistics[arch]) for arch in archs]
        self.x = zoo.input(archs[0], 1)
        self.expected = [zoo.expected(arch, statistics[arch], self.x) for arch in archs]
        self.bytes_of_all = sum(t.nbytes for t in zoo.state.values())
        self.faults: list[str] = []
        self.lookups: list[int] = []

    def run(self, batches: int, stop: threading.Event) -> None:
        runners = [threading.Thread(target=self._run, args=(s, batches)) for s in (1, 2)]
        churner = threading.Thread(target=self._churn, args=(stop,))
        for thread in (*runners, churner):
            thread.start()
        for thread in runners:
            thread.join()
        stop.set()
        churner.join()

    @torch.inference_mode()
    def _run(self, seed: int, batches: int) -> None:
        own = np.random.default_rng(seed)
        for i in own.integers(len(self.ids), size=batches):
            self.lookups.append(self.net.actuate(self.ids[i]).lookups)
            got = self.net.run(self.ids[i], self.x)
            if difference(got, self.expected[i]) > TOLERANCE["folded"]:
                self.faults.append(self.ids[i])

    @torch.inference_mode()
    def _churn(self, stop: threading.Event) -> None:
        own = np.random.default_rng(9)
        while not stop.is_set():
            i = int(own.integers(len(self.ids)))
            self.net.load(self.net.slices(self.ids[i], ("shared", "folded")[own.integers(2)]))
            resident = sorted(self.cache.resident, key=hash)
            if resident and own.random() < 0.5:
                self.cache.evict(resident[:: int(own.integers(1, 4))])
            budget = self.cache.budget_bytes
            if budget is not None and self.cache.held_bytes > budget:
                self.faults.append(f"{self.cache.held_bytes} bytes held, allowed {budget}")


@needs_packing
def test_threads_switch_and_evict_at_every_budget_without_a_wrong_answer() -> None:
    stress = Stress(num_subnets=200)
    cache = stress.cache
    for part in (0.0, 0.1, 0.4, 1.0, None):
        cache.clear()
        assert cache.held_bytes == 0
        cache.budget_bytes = None if part is None else int(part * stress.bytes_of_all)
        before, known = cache.counts, len(stress.lookups)
        stress.run(batches=60, stop=threading.Event())
        counts = cache.counts
        assert stress.faults == [], part
        assert counts.lookups - before.lookups == sum(stress.lookups[known:])
        assert counts.hits + counts.misses == counts.lookups
        assert (counts.hits > before.hits) == (part != 0.0)
        if part in (0.0, 0.1, None):  # at 0.4 and 1.0 it depends on chance
            assert (counts.refusals > before.refusals) == (part is not None), part


@needs_packing
def test_tracing_one_subnet_does_not_disturb_a_thread_that_runs_another(small: Zoo) -> None:
    net = PackedSupernet(small.definition, small.state, small.norms, SubgraphCache())
    arch = small.definition.space.smallest
    subnet_id = net.register(arch, small.statistics(arch))
    x = small.input(arch)
    expected = net.run(subnet_id, x)
    stop, done = threading.Event(), []

    @torch.inference_mode()
    def run() -> None:
        while not stop.is_set():
            done.append(torch.equal(net.run(subnet_id, x), expected))

    thread = threading.Thread(target=run)
    thread.start()
    for other in small.definition.space.ladder()[1:] * 10:
        Program(small.definition, other, small.state)
    stop.set()
    thread.join()
    assert len(done) > 10
    assert all(done)


def test_folded_norms_give_back_the_statistics_that_they_were_made_of(small: Zoo) -> None:
    arch = small.definition.space.largest
    statistics = small.statistics(arch)
    norms = FoldedNorms(small.definition, small.state)
    norms.add(arch, statistics)
    for name, tensor in norms.statistics(arch).items():
        torch.testing.assert_close(tensor, statistics[name], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="kept as torch.bfloat16, allowed torch.float32"):
        FoldedNorms(small.definition, small.state, torch.bfloat16)


def test_norms_in_16_bit_cost_half_and_extraction_reads_the_same_store(small: Zoo) -> None:
    arch = small.definition.space.largest
    norms = FoldedNorms(small.definition, small.state, torch.float16)
    net = PackedSupernet(small.definition, small.state, norms, SubgraphCache())
    subnet_id = net.register(arch, small.statistics(arch))
    channels = sum(
        shape[0]
        for name, shape in small.definition.buffer_shapes(arch).items()
        if name.endswith("running_mean")
    )
    assert norms.num_bytes == 2 * 2 * channels
    x = small.input(arch)
    expected = small.expected(arch, norms.statistics(arch), x)
    assert difference(net.run(subnet_id, x), expected) <= 1e-4
    tiny_variance = {n: torch.full_like(t, 1e-30) for n, t in small.statistics(arch).items()}
    small_weights = {n: t * 1e-9 for n, t in small.state.items() if t.is_floating_point()}
    kept_wide = FoldedNorms(small.definition, small_weights, torch.float16)
    kept_wide.add(arch, tiny_variance)
    assert kept_wide.num_bytes == 4 * 2 * channels
