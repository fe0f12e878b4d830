"""`ProfileRequest`: what the options of `supernet profile` ask for, checked and measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slackfit.profile import LatencyProfile
from subnetact.load import load_executor, mebibytes
from subnetact.parallel.worker_grid import WorkerGrid
from subnetact.profiling.profiler import Progress, measure_profile
from supernet.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class ProfileRequest:
    """A profile to measure at `batch_sizes`, of a decoder with so many streams that decode.

    `grid` is of a decoder: several workers are measured besides. With `residency_mib` batches are
    measured on views, and beside sets of graphs of at most that size. Raises ValueError for
    options that exclude each other, whatever the checkpoint.
    """

    batch_sizes: tuple[int, ...]
    repeats: int
    device: str
    threads: int
    packing: str | None
    cache_mib: float | None
    dtype: str | None
    graph_mib: float | None
    residency_mib: float | None
    grid: WorkerGrid

    def __post_init__(self) -> None:
        others = self.device != "cpu" or self.packing or self.cache_mib is not None
        if self.residency_mib is not None and others:
            raise ValueError("--residency goes with a CPU, without --packing and --cache-mib")

    def check(self, loaded: Checkpoint) -> None:
        """Raise ValueError for what can't be measured of this checkpoint."""
        is_decoder = loaded.definition.family.generates
        if len(self.grid) > 1 and not is_decoder:
            raise ValueError("--shards and --stages go with a decoder")
        if is_decoder and (self.residency_mib, self.cache_mib) != (None, None):
            raise ValueError(
                "a decoder has no graphs to keep: leave --residency and --cache-mib out"
            )
        if len(self.grid) > 1 and self.device != "cpu":
            raise ValueError(
                f"--shards and --stages are processes on a cpu, --device is {self.device}"
            )

    def measure(
        self, loaded: Checkpoint, folder: Path, show: Progress, tell: Callable[[str], None]
    ) -> LatencyProfile:
        """Measure the checkpoint of a folder; `show(done, total)` counts rounds, `tell` speaks.

        Raises what the measurements raise.
        """
        if loaded.definition.family.generates:
            return self._of_iterations(loaded, folder, show, tell)
        if self.residency_mib is not None:
            return self._beside_graphs(loaded, int(self.residency_mib * 2**20), show)
        return self._of_batches(loaded, show)

    def _of_batches(self, loaded: Checkpoint, show: Progress) -> LatencyProfile:
        executor = load_executor(
            loaded,
            device=self.device,
            threads=self.threads,
            max_batch_size=max(self.batch_sizes),
            packing=self.packing,
            budget_bytes=mebibytes(self.cache_mib),
            dtype=self.dtype,
            batch_sizes=self.batch_sizes,
            graph_budget_bytes=mebibytes(self.graph_mib),
            choose_engines=True,
        )
        return measure_profile(
            executor, loaded, batch_sizes=self.batch_sizes, repeats=self.repeats, progress=show
        )

    def _beside_graphs(
        self, loaded: Checkpoint, budget_bytes: int, show: Progress
    ) -> LatencyProfile:
        from subnetact.cpu.graph_executor import GraphExecutor
        from subnetact.profiling.resident_profile import measure_resident_profile

        graphs = load_executor(
            loaded,
            threads=self.threads,
            max_batch_size=max(self.batch_sizes),
            packing="graph",
            choose_engines=True,
        )
        assert isinstance(graphs, GraphExecutor), "the packing asked for"
        return measure_resident_profile(
            graphs,
            loaded,
            budget_bytes,
            batch_sizes=self.batch_sizes,
            repeats=self.repeats,
            progress=show,
        )

    def _of_iterations(
        self, loaded: Checkpoint, folder: Path, show: Progress, tell: Callable[[str], None]
    ) -> LatencyProfile:
        from subnetact.load_streams import load_stream_executor
        from subnetact.profiling.iteration_profiler import measure_iterations

        executor = load_stream_executor(
            loaded,
            device=self.device,
            capacity_tokens=512 * (max(self.batch_sizes) + 2),
            threads=self.threads,
            packing=self.packing,
            dtype=self.dtype,
            most_decodes=max(self.batch_sizes),
            graph_budget_bytes=mebibytes(self.graph_mib),
        )
        try:
            measured = measure_iterations(
                executor, loaded, decodes=self.batch_sizes, repeats=self.repeats, progress=show
            )
        finally:
            executor.close()
        if len(self.grid) == 1:
            return measured
        from subnetact.profiling.grid_profile import with_grid

        return with_grid(
            measured, loaded, folder, self.grid,
            threads=self.threads, packing=self.packing, repeats=self.repeats, tell=tell,
        )  # fmt: skip


def parse_sizes(text: str) -> tuple[int, ...]:
    """Return the batch sizes of `1,2,4`. Raises ValueError for anything else."""
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--batch-sizes is {text!r}, expected numbers such as 1,2,4,8") from None
    if min(sizes) < 1:
        raise ValueError(f"--batch-sizes is {text!r}, allowed numbers from 1 up")
    return sizes
