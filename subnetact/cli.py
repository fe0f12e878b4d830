"""`supernet profile`: measure a latency profile of a checkpoint on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from slackfit.output_files import check_outputs
from slackfit.plain_console import plain_console
from slackfit.profile import LatencyProfile
from slackfit.user_errors import user_errors
from subnetact.parallel.worker_grid import WorkerGrid
from subnetact.profiling.profile_request import ProfileRequest, parse_sizes
from supernet.checkpoint import load_checkpoint

console = plain_console(stderr=True)

CheckpointOption = Annotated[Path, typer.Option(help="Checkpoint folder.")]
OutOption = Annotated[Path, typer.Option(help="Profile file to write (JSON).")]
DeviceOption = Annotated[str, typer.Option(help="cpu or cuda.")]
BatchSizesOption = Annotated[str, typer.Option(help="Comma-separated.")]
RepeatsOption = Annotated[int, typer.Option(help="Runs per (subnet, batch size).")]
ThreadsOption = Annotated[int, typer.Option(help="CPU threads of the device.")]
PackingOption = Annotated[
    str | None,
    typer.Option(
        help="CPU: graph or views; CUDA: folded, shared, one_copy or views. Decoders: "
        "views, packed, half or int8; CUDA: views."
    ),
]
CacheOption = Annotated[
    float | None,
    typer.Option(help="Most that graphs hold (CUDA: all weights), in MiB; default: no limit."),
]
DtypeOption = Annotated[
    str | None, typer.Option(help="On CUDA bfloat16 (default), float16 or float32.")
]
GraphMemoryOption = Annotated[
    float | None,
    typer.Option(help="Most that CUDA graphs hold, in MiB; 0: no graphs; default: no limit."),
]
ResidencyOption = Annotated[
    float | None,
    typer.Option(
        metavar="MIB",
        min=0,
        help="Measure on views, and beside sets of graphs of at most this size (CPU).",
    ),
]
ShardsOption = Annotated[
    int, typer.Option(min=1, help="Decoders: processes that share keys and values.")
]
StagesOption = Annotated[
    int, typer.Option(min=1, help="Decoders: processes in a row that share the blocks.")
]


def profile(
    checkpoint: CheckpointOption,
    out: OutOption,
    device: DeviceOption = "cpu",
    batch_sizes: BatchSizesOption = "1,2,4,8,16",
    repeats: RepeatsOption = 20,
    threads: ThreadsOption = 1,
    packing: PackingOption = None,
    cache_mib: CacheOption = None,
    dtype: DtypeOption = None,
    graph_mib: GraphMemoryOption = None,
    residency: ResidencyOption = None,
    shards: ShardsOption = 1,
    stages: StagesOption = 1,
) -> None:
    """Measure latency quantiles of every served subnet at every batch size."""
    with user_errors(ValueError, RuntimeError, OSError):
        request = ProfileRequest(
            batch_sizes=parse_sizes(batch_sizes),
            repeats=repeats,
            device=device,
            threads=threads,
            packing=packing,
            cache_mib=cache_mib,
            dtype=dtype,
            graph_mib=graph_mib,
            residency_mib=residency,
            grid=WorkerGrid(shards, stages),
        )
        check_outputs(out)
        measured = _measured(request, checkpoint)
        measured.save(out)
    plain_console().print(latency_table(measured))
    typer.echo(f"profile: {out}", err=True)


def _measured(request: ProfileRequest, folder: Path) -> LatencyProfile:
    """Measure a checkpoint folder under a bar."""
    loaded = load_checkpoint(folder)
    request.check(loaded)
    with Progress(console=console) as progress:
        task = progress.add_task("profiling", total=request.repeats)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        return request.measure(loaded, folder, show, console.print)


def latency_table(profile: LatencyProfile) -> Table:
    """Median latency in milliseconds, a row per subnet and a column per batch size."""
    table = Table(title=f"{profile.name}: p50 latency (ms), {profile.threads} threads")
    table.add_column("subnet")
    table.add_column("accuracy (%)", justify="right")
    for size in profile.batch_sizes:
        table.add_column(f"batch {size}", justify="right")
    for subnet in profile.subnets:
        latencies = [f"{t * 1e3:.2f}" for t in subnet.latency_s["p50"]]
        table.add_row(subnet.subnet_id, f"{subnet.accuracy * 100:.2f}", *latencies)
    return table
