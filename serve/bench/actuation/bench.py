"""`supernet bench actuation`: what a CPU's served subnets cost, against the same networks alone.

Every figure is a ratio or a median of interleaved rounds in one process, or of a process of its own
where memory and starting are measured. One thread, unless the figure says another number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import torch

from serve.bench.actuation.bench_net import (
    BenchNet,
    cifar10_resnet20,
    ofa_mobilenet_v3,
    ofa_resnet50,
)
from serve.bench.actuation.busy import busy_rows
from serve.bench.actuation.graph_rows import graph_rows
from serve.bench.actuation.int8_capacity import QUERIES, capacity_rows
from serve.bench.actuation.residency import residency_rows
from serve.bench.actuation.servable_memory import servable_memory_rows
from serve.bench.actuation.served_memory import served_memory_rows
from serve.bench.actuation.startup import form_ids, startup_rows
from serve.bench.actuation.switch import switch_rows
from serve.bench.one_bit.bench import OneBitBench, OneBitTraining
from serve.bench.rows import Row, Tell
from subnetact.cpu.graph_executor import GraphExecutor
from subnetact.cpu.ort_session import onnxruntime
from subnetact.device import device_name
from subnetact.profiling.profiler import measure_profile
from subnetact.profiling.sushi_encoding import widths_of
from subnetact.views.eager_executor import EagerExecutor
from supernet.checkpoint import Checkpoint, load_checkpoint

PARTS = (
    "graph", "int8", "switch", "residency", "memory", "startup", "busy", "capacity", "onebit"
)  # fmt: skip
_STARTED, _STARTED_FULL = 14, 100  # subnets
_SERVABLE = 500
_BUSY_BATCH = 8
_PROFILED = 5  # runs of each entry of the profile that capacity is simulated with


class BenchNets(Protocol):
    """The networks that the parts measure."""

    @property
    def cifar(self) -> BenchNet: ...

    @property
    def mobilenet(self) -> BenchNet: ...

    @property
    def resnet(self) -> BenchNet: ...


class PublishedNets:
    """The released CIFAR-10 supernet, and OFA's two with random weights; made when asked for."""

    @cached_property
    def cifar(self) -> BenchNet:
        """See `cifar10_resnet20`."""
        return cifar10_resnet20()

    @cached_property
    def mobilenet(self) -> BenchNet:
        """See `ofa_mobilenet_v3`."""
        return ofa_mobilenet_v3()

    @cached_property
    def resnet(self) -> BenchNet:
        """See `ofa_resnet50`."""
        return ofa_resnet50()


class ActuationBench:
    """Runs the parts of the benchmark and collects their rows."""

    def __init__(
        self,
        nets: BenchNets | None = None,
        *,
        full: bool = False,
        thoroughness: float = 1.0,
        servable: int = _SERVABLE,
        queries: int = QUERIES,
        training: OneBitTraining | None = None,
        tell: Tell = print,
    ):
        """`full` measures two threads as well, and the start of a hundred subnets.

        `thoroughness` stretches the seconds that every figure is given, `servable` and `queries`
        say how many subnets are counted in memory and queries simulated. `training` is what part
        onebit trains, for hours, and keeps; without it that part measures times and sizes alone.
        """
        self._nets = nets or PublishedNets()
        self._full = full
        self._thoroughness = thoroughness
        self._servable = servable
        self._queries = queries
        self._training = training
        self._tell = tell
        self._folder = Path()

    def run(self, parts: Iterable[str] | None = None) -> list[Row]:
        """Run the named parts (default: all). Raises ValueError for an unknown one."""
        wanted = PARTS if parts is None else tuple(parts)
        unknown = sorted(set(wanted) - set(PARTS))
        if unknown:
            raise ValueError(f"unknown part {', '.join(unknown)}; allowed {', '.join(PARTS)}")
        before = torch.get_num_threads()
        rows: list[Row] = []
        torch.set_num_threads(1)
        try:
            with TemporaryDirectory() as folder:
                self._folder = Path(folder)
                for part in (p for p in PARTS if p in wanted):
                    self._tell(f"{part} ...")
                    rows += getattr(self, f"_{part}")()
        finally:
            torch.set_num_threads(before)
        where = {
            "device": device_name("cpu"),
            "torch": torch.__version__,
            "onnxruntime": onnxruntime().__version__,
        }
        return [row | where for row in rows]

    def _graph(self) -> list[Row]:
        return self._against_static("fp32")

    def _int8(self) -> list[Row]:
        return self._against_static("int8")

    def _against_static(self, precision: str) -> list[Row]:
        nets = (self._nets.cifar, self._nets.mobilenet, self._nets.resnet)
        return graph_rows(
            (net.case(size) for net in nets for size in net.sizes),
            precisions=[precision],
            threads=(1, 2) if self._full else (1,),
            at_least_s=3.0 * self._thoroughness,
            tell=self._tell,
        )

    def _switch(self) -> list[Row]:
        rows: list[Row] = []
        for net in (self._nets.cifar, self._nets.mobilenet, self._nets.resnet):
            checkpoint, views = self._views(net)
            executor = self._graphs(checkpoint, views, form_ids(checkpoint, "both"))
            at_least_s = 20.0 * self._thoroughness
            rows += switch_rows(net.name, executor, at_least_s=at_least_s, tell=self._tell)
            executor.close()
        return rows

    def _residency(self) -> list[Row]:
        net = self._nets.resnet
        checkpoint, views = self._views(net)
        rows: list[Row] = []
        for precision in ("int8", "fp32"):
            ids = form_ids(checkpoint, precision)
            executor = self._graphs(checkpoint, views, ids)
            rows += residency_rows(
                net.name,
                precision,
                executor,
                views,
                {i: widths_of(net.definition, checkpoint.subnet(i).arch) for i in ids},
                at_least_s=0.5 * self._thoroughness,
                tell=self._tell,
            )
            executor.close()
        return rows

    def _memory(self) -> list[Row]:
        rows: list[Row] = []
        for net in (self._nets.cifar, self._nets.resnet):
            folder = net.saved(net.served, self._folder)
            rows += served_memory_rows(net.name, folder, self._folder, tell=self._tell)
        resnet = self._nets.resnet
        return [*rows, *servable_memory_rows(resnet, servable=self._servable, tell=self._tell)]

    def _startup(self) -> list[Row]:
        wanted = [(self._nets.cifar, _STARTED), (self._nets.resnet, _STARTED)]
        if self._full:
            wanted.append((self._nets.mobilenet, _STARTED_FULL))
        rows: list[Row] = []
        for net, count in wanted:
            rows += startup_rows(
                net.name, net.saved(net.archs(count), self._folder), tell=self._tell
            )
        return rows

    def _busy(self) -> list[Row]:
        net = self._nets.cifar
        checkpoint, views = self._views(net)
        largest = net.sizes["max"].subnet_id
        graphs = self._graphs(checkpoint, views, (largest, f"{largest}-i8"))
        samples = graphs.sample.zeros(_BUSY_BATCH)
        calls: dict[str, Callable[[], object]] = {
            "fp32": lambda: graphs.run(largest, samples),
            "int8": lambda: graphs.run(f"{largest}-i8", samples),
            "views": lambda: views.run(largest, samples),
        }
        at_least_s = 15.0 * self._thoroughness
        figure = f"{net.name}/max/b{_BUSY_BATCH}/t1"
        return busy_rows(figure, calls, at_least_s=at_least_s, tell=self._tell)

    def _capacity(self) -> list[Row]:
        net = self._nets.resnet
        checkpoint, views = self._views(net)
        executor = self._graphs(checkpoint, views, form_ids(checkpoint, "both"))
        repeats = max(1, round(_PROFILED * self._thoroughness))
        profile = measure_profile(executor, checkpoint, repeats=repeats)
        executor.close()
        return capacity_rows(net.name, profile, queries=self._queries, tell=self._tell)

    def _onebit(self) -> list[Row]:
        bench = OneBitBench(
            self._nets.cifar, self._training, thoroughness=self._thoroughness, tell=self._tell
        )
        return bench.run()

    def _views(self, net: BenchNet) -> tuple[Checkpoint, EagerExecutor]:
        """Return the checkpoint of what a network serves, and an executor of it on views."""
        checkpoint = load_checkpoint(net.saved(net.served, self._folder))
        return checkpoint, EagerExecutor(checkpoint)

    def _graphs(
        self, checkpoint: Checkpoint, views: EagerExecutor, subnet_ids: Iterable[str]
    ) -> GraphExecutor:
        return GraphExecutor(
            checkpoint, lambda: views, subnet_ids=subnet_ids, cache_folder=self._folder / "graphs"
        )
