"""`supernet bench actuation`: what actuation costs on this CPU, against the same networks alone.

Every figure is a ratio or a median measured in one process, in interleaved order. Weights are
random: time does not depend on them. Rows name packing, threads, batch size and bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from statistics import median

import numpy as np
import torch
from subnetact.cpu.packed_supernet import PackedSupernet
from torch import nn

from serve.bench.actuation.default_packing import default_rows
from serve.bench.actuation.memory import memory_rows
from serve.bench.actuation.random_supernet import random_state, statistics_of
from serve.bench.actuation.residency import residency_rows
from serve.bench.rows import Row, Tell, row
from subnetact.cache import SubgraphCache
from subnetact.device import device_name
from subnetact.norms import FoldedNorms
from supernet.arch import Arch
from supernet.definition import SupernetDefinition, define_supernet
from supernet.subnets.extract import extract

NETS = {"ofa_resnet50": "ofa_resnet50", "ofa_mobilenet_v3": "ofa_mobilenet_v3_w1.0"}
PARTS = ("resnet", "mobilenet", "compile", "switch", "memory", "sgs", "default")
_PACKINGS = ("views", "shared", "folded")


class ActuationBench:
    """Runs the parts of the benchmark and collects their rows."""

    def __init__(
        self,
        *,
        repeats: int = 7,
        threads: Iterable[int] = (1, 2),
        batch_sizes: Iterable[int] = (1, 8),
        full: bool = False,
        tell: Tell = print,
    ):
        """`full` compiles every subnet instead of the middle ones, and lengthens streams."""
        if repeats < 1:
            raise ValueError(f"repeats is {repeats}, allowed 1 or more")
        self._repeats = repeats
        self._threads = tuple(threads)
        self._batch_sizes = tuple(batch_sizes)
        self._full = full
        self._tell = tell
        self._rng = np.random.default_rng(0)

    def run(self, parts: Iterable[str] | None = None) -> list[Row]:
        """Run the named parts (default: all). Raises ValueError for an unknown one."""
        wanted = PARTS if parts is None else tuple(parts)
        unknown = sorted(set(wanted) - set(PARTS))
        if unknown:
            raise ValueError(f"unknown part {', '.join(unknown)}; allowed {', '.join(PARTS)}")
        before = torch.get_num_threads()
        rows: list[Row] = []
        try:
            with torch.inference_mode():
                for part in (p for p in PARTS if p in wanted):
                    self._tell(f"{part} ...")
                    rows += getattr(self, f"_{part}")()
        finally:
            torch.set_num_threads(before)
        return [row | {"device": device_name("cpu"), "torch": torch.__version__} for row in rows]

    def _resnet(self) -> list[Row]:
        return self._latency("ofa_resnet50")

    def _mobilenet(self) -> list[Row]:
        return self._latency("ofa_mobilenet_v3")

    def _latency(self, net_name: str) -> list[Row]:
        definition = define_supernet(NETS[net_name])
        state = random_state(definition)
        rows: list[Row] = []
        for size, arch in _sizes(definition).items():
            rows += self._latency_of(net_name, size, definition, state, arch)
        return rows + _medians(rows)

    def _latency_of(
        self,
        net_name: str,
        size: str,
        definition: SupernetDefinition,
        state: Mapping[str, torch.Tensor],
        arch: Arch,
    ) -> list[Row]:
        rows: list[Row] = []
        static = _static(definition, state, arch)
        for threads in self._threads:
            torch.set_num_threads(threads)  # first: packed layouts depend on it
            nets = {packing: prepared(definition, state, arch, packing) for packing in _PACKINGS}
            calls = {m: _runner(net, arch.subnet_id) for m, net in nets.items()}
            for batch_size in self._batch_sizes:
                x = _input(definition, arch, batch_size)
                samples_s = interleaved({"static": static, **calls}, x, self._repeats)
                for packing in _PACKINGS:
                    name = "views" if packing == "views" else f"resident_{packing}"
                    held = nets[packing].cache.held_bytes
                    rows.append(
                        row(
                            f"actuation/{net_name}/{size}/b{batch_size}/t{threads}/{name}_over_static_eager",
                            paired_ratio(samples_s, packing, "static"),
                            "ratio",
                            f"medians {_brief(samples_s, packing, 'static')}; "
                            f"{len(samples_s[packing])} rounds, {held} bytes packed, "
                            f"no budget; {arch.subnet_id}",
                        )
                    )
                ratios = {m: round(paired_ratio(samples_s, m, "static"), 3) for m in _PACKINGS}
                self._tell(f"  {net_name} {size} b{batch_size} t{threads}: {ratios}")
        return rows

    def _compile(self) -> list[Row]:
        rows: list[Row] = []
        for net_name, variant in NETS.items():
            definition = define_supernet(variant)
            state = random_state(definition)
            for size, arch in _sizes(definition).items():
                if self._full or size == "mid":
                    rows += self._compile_of(net_name, size, definition, state, arch)
        return rows

    def _compile_of(
        self,
        net_name: str,
        size: str,
        definition: SupernetDefinition,
        state: Mapping[str, torch.Tensor],
        arch: Arch,
    ) -> list[Row]:
        import torch._dynamo
        import torch._inductor.config as inductor

        rows: list[Row] = []
        torch.set_num_threads(1)
        net = prepared(definition, state, arch, "folded")
        for batch_size in self._batch_sizes:
            x = _input(definition, arch, batch_size)
            torch._dynamo.reset()
            with inductor.patch(freezing=True), torch.no_grad():
                compiled = torch.compile(_static(definition, state, arch), dynamic=False)
                start_s = time.perf_counter()
                compiled(x)
                compile_s = time.perf_counter() - start_s
                calls = {"compiled": compiled, "folded": _runner(net, arch.subnet_id)}
                samples_s = interleaved(calls, x, self._repeats)
            figure = f"{net_name}/{size}/b{batch_size}/t1"
            times = _brief(samples_s, "folded", "compiled")
            detail = f"medians {times}; torch.compile with freezing, dynamic=False"
            ratio = paired_ratio(samples_s, "folded", "compiled")
            rows.append(
                row(f"actuation/{figure}/resident_folded_over_compiled", ratio, "ratio", detail)
            )
            rows.append(
                row(f"actuation/{figure}/compile_time", compile_s, "s", "once per subnet and batch")
            )
            self._tell(f"  {figure}: {ratio:.3f}, {times}, compiled in {compile_s:.1f} s")
        return rows

    def _switch(self) -> list[Row]:
        rows: list[Row] = []
        for net_name, variant in NETS.items():
            definition = define_supernet(variant)
            net = PackedSupernet(
                definition,
                state := random_state(definition),
                FoldedNorms(definition, state),
                SubgraphCache(),
            )
            archs = list(_sizes(definition).values())
            ids = [net.register(a, statistics_of(definition, a, self._rng)) for a in archs]
            for subnet_id in ids:
                net.load(net.slices(subnet_id))
            for subnet_id in ids:
                net.actuate(subnet_id)
            taken_s = []
            for i in self._rng.integers(len(ids), size=20_000):
                start_s = time.perf_counter()
                net.actuate(ids[i])
                taken_s.append(time.perf_counter() - start_s)
            layers = ", ".join(str(net.actuate(i).lookups) for i in ids)
            p50, p99 = np.percentile(taken_s, [50, 99]) * 1e6
            detail = f"20,000 switches among resident subnets of {layers} convolutions"
            rows.append(row(f"actuation/{net_name}/switch_p50", p50, "us", detail))
            rows.append(row(f"actuation/{net_name}/switch_p99", p99, "us", detail))
        return rows

    def _memory(self) -> list[Row]:
        return memory_rows(define_supernet(NETS["ofa_resnet50"]), tell=self._tell)

    def _sgs(self) -> list[Row]:
        definition = define_supernet(NETS["ofa_resnet50"])
        return residency_rows(definition, random_state(definition), tell=self._tell)

    def _default(self) -> list[Row]:
        definition = define_supernet(NETS["ofa_resnet50"])
        state = random_state(definition)
        return default_rows(definition, state, repeats=self._repeats, tell=self._tell)


def prepared(
    definition: SupernetDefinition, state: Mapping[str, torch.Tensor], arch: Arch, packing: str
) -> PackedSupernet:
    """Return a supernet with one subnet, all of its slices resident in `packing` (views: none)."""
    norms = FoldedNorms(definition, state)
    net = PackedSupernet(definition, state, norms, SubgraphCache())
    net.register(arch, statistics_of(definition, arch, np.random.default_rng(0)))
    if packing != "views":
        net.load(net.slices(arch.subnet_id, packing))
    return net


Samples = dict[str, list[float]]


def interleaved(
    calls: Mapping[str, Callable[[torch.Tensor], object]],
    x: torch.Tensor,
    repeats: int,
    at_least_s: float = 2.0,
) -> Samples:
    """Return the seconds of each call on `x` in each round, after two rounds that do not count.

    Every round runs each call once. There are `repeats` rounds at least, and more of what is
    quick: until `at_least_s` have passed, thirty at most.
    """
    samples_s: Samples = {name: [] for name in calls}
    start_s = time.perf_counter()
    for round_number in range(-2, 30):
        for name, call in calls.items():
            before_s = time.perf_counter()
            call(x)
            if round_number >= 0:
                samples_s[name].append(time.perf_counter() - before_s)
        if round_number + 1 >= repeats and time.perf_counter() - start_s >= at_least_s:
            break
    return samples_s


def paired_ratio(samples_s: Samples, name: str, over: str) -> float:
    """Return the median over rounds of one call's time over another's in the same round.

    A machine that slows down for a while slows both, so this stands when medians do not.
    """
    pairs = zip(samples_s[name], samples_s[over], strict=True)
    return median(a / b for a, b in pairs)


def _sizes(definition: SupernetDefinition) -> dict[str, Arch]:
    space = definition.space
    if space.family == "ofa_resnet50":
        middle = space.uniform(depth=1, expand=0.25, width=1, resolution=176)
    else:
        middle = space.uniform(depth=3, expand=4, kernel=5, resolution=176)
    return {"min": space.smallest, "mid": middle, "max": space.largest}


def _static(
    definition: SupernetDefinition, state: Mapping[str, torch.Tensor], arch: Arch
) -> nn.Module:
    statistics = statistics_of(definition, arch, np.random.default_rng(0))
    return extract(state, definition, arch, statistics).to(memory_format=torch.channels_last)


def _runner(net: PackedSupernet, subnet_id: str) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: net.run(subnet_id, x)


def _input(definition: SupernetDefinition, arch: Arch, batch_size: int) -> torch.Tensor:
    x = definition.example_input(arch, batch_size)
    return torch.randn(x.shape).contiguous(memory_format=torch.channels_last)


def _medians(rows: list[Row]) -> list[Row]:
    """Median and worst ratio per net and packing."""
    groups: dict[tuple[str, str], list[float]] = {}
    for one in rows:
        _, net_name, *_, figure = one["figure"].split("/")
        groups.setdefault((net_name, figure), []).append(one["value"])
    summary: list[Row] = []
    for (net_name, figure), values in groups.items():
        detail = f"over {len(values)} settings of size, batch and threads"
        summary.append(
            row(f"actuation/{net_name}/median/{figure}", median(values), "ratio", detail)
        )
        summary.append(row(f"actuation/{net_name}/worst/{figure}", max(values), "ratio", detail))
    return summary


def _brief(samples_s: Samples, *names: str) -> str:
    return ", ".join(f"{name} {median(samples_s[name]) * 1e3:.2f} ms" for name in names)
