"""`supernet profile`: measure a latency profile of a checkpoint on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from slackfit.output_files import check_outputs
from slackfit.profile import LatencyProfile
from slackfit.user_errors import user_errors
from subnetact.load import load_executor, mebibytes
from subnetact.profiling.profiler import measure_profile
from supernet.checkpoint import Checkpoint, load_checkpoint

console = Console(stderr=True)


def profile(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder.")],
    out: Annotated[Path, typer.Option(help="Profile file to write (JSON).")],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    batch_sizes: Annotated[str, typer.Option(help="Comma-separated.")] = "1,2,4,8,16",
    repeats: Annotated[int, typer.Option(help="Runs per (subnet, batch size).")] = 20,
    threads: Annotated[int, typer.Option(help="CPU threads of the device.")] = 1,
    packing: Annotated[
        str | None,
        typer.Option(
            help="CPU: graph or views; CUDA: folded, shared, one_copy or views. Decoders: "
            "views, packed, half or int8; CUDA: views."
        ),
    ] = None,
    cache_mib: Annotated[
        float | None,
        typer.Option(help="Most that graphs hold (CUDA: all weights), in MiB; default: no limit."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="On CUDA bfloat16 (default), float16 or float32.")
    ] = None,
    graph_mib: Annotated[
        float | None,
        typer.Option(help="Most that CUDA graphs hold, in MiB; 0: no graphs; default: no limit."),
    ] = None,
    residency: Annotated[
        float | None,
        typer.Option(
            metavar="MIB",
            min=0,
            help="Measure on views, and beside sets of graphs of at most this size (CPU).",
        ),
    ] = None,
    shards: Annotated[
        int, typer.Option(min=1, help="Decoders: processes that share keys and values.")
    ] = 1,
    stages: Annotated[
        int, typer.Option(min=1, help="Decoders: processes in a row that share the blocks.")
    ] = 1,
) -> None:
    """Measure latency quantiles of every served subnet at every batch size."""
    with user_errors(ValueError, RuntimeError, OSError):
        sizes = _parse_sizes(batch_sizes)
        if residency is not None and (device != "cpu" or packing or cache_mib is not None):
            raise ValueError("--residency goes with a CPU, without --packing and --cache-mib")
        check_outputs(out)
        loaded = load_checkpoint(checkpoint)
        if shards * stages > 1 and not loaded.definition.family.generates:
            raise ValueError("--shards and --stages go with a decoder")
        if loaded.definition.family.generates and (residency, cache_mib) != (None, None):
            raise ValueError(
                "a decoder has no graphs to keep: leave --residency and --cache-mib out"
            )
        if shards * stages > 1 and device != "cpu":
            raise ValueError(f"--shards and --stages are processes on a cpu, --device is {device}")
        with Progress(console=console) as progress:
            task = progress.add_task("profiling", total=repeats)

            def show(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            if loaded.definition.family.generates:
                measured = _of_iterations(
                    loaded, sizes, repeats, threads, packing, device, dtype, graph_mib, show
                )
                if shards * stages > 1:
                    measured = with_grid(
                        measured, loaded, checkpoint, shards, stages, threads, packing, repeats
                    )
            elif residency is not None:
                from subnetact.cpu.graph_executor import GraphExecutor
                from subnetact.profiling.resident_profile import measure_resident_profile

                graphs = load_executor(
                    loaded,
                    threads=threads,
                    max_batch_size=max(sizes),
                    packing="graph",
                    choose_engines=True,
                )
                assert isinstance(graphs, GraphExecutor), "the packing asked for"
                measured = measure_resident_profile(
                    graphs,
                    loaded,
                    int(residency * 2**20),
                    batch_sizes=sizes,
                    repeats=repeats,
                    progress=show,
                )
            else:
                executor = load_executor(
                    loaded,
                    device=device,
                    threads=threads,
                    max_batch_size=max(sizes),
                    packing=packing,
                    budget_bytes=mebibytes(cache_mib),
                    dtype=dtype,
                    batch_sizes=sizes,
                    graph_budget_bytes=mebibytes(graph_mib),
                    choose_engines=True,
                )
                measured = measure_profile(
                    executor, loaded, batch_sizes=sizes, repeats=repeats, progress=show
                )
        measured.save(out)
    Console().print(latency_table(measured))
    console.print(f"profile: {out}")


def _of_iterations(
    loaded: Checkpoint,
    decodes: tuple[int, ...],
    repeats: int,
    threads: int,
    packing: str | None,
    device: str,
    dtype: str | None,
    graph_mib: float | None,
    show: Callable[[int, int], None],
) -> LatencyProfile:
    from subnetact.load_streams import load_stream_executor
    from subnetact.profiling.iteration_profiler import measure_iterations

    executor = load_stream_executor(
        loaded,
        device=device,
        capacity_tokens=512 * (max(decodes) + 2),
        threads=threads,
        packing=packing,
        dtype=dtype,
        most_decodes=max(decodes),
        graph_budget_bytes=mebibytes(graph_mib),
    )
    try:
        return measure_iterations(executor, loaded, decodes=decodes, repeats=repeats, progress=show)
    finally:
        executor.close()


def with_grid(
    measured: LatencyProfile,
    loaded: Checkpoint,
    folder: Path,
    shards: int,
    stages: int,
    threads: int,
    packing: str | None,
    repeats: int,
) -> LatencyProfile:
    """Add to a profile what a grid of worker processes costs, and say from where shards pay.

    Raises what `measure_grid` and `ParallelExecutor` raise.
    """
    from slackfit.streams.iteration_cost import IterationCosts
    from subnetact.decoding.stream_executor import StreamExecutor
    from subnetact.parallel.break_even import CONTEXTS, NOWHERE, longest_context, measure_grid
    from subnetact.parallel.parallel_executor import ParallelExecutor
    from subnetact.parallel.worker_grid import WorkerGrid

    max_positions = loaded.definition.config.max_positions  # type: ignore[attr-defined]
    longest = longest_context(max_positions, repeats)
    contexts = [c for c in CONTEXTS if c < longest] or [longest // 4]
    contexts = [*contexts, longest] if len(contexts) == 1 else contexts
    packing = packing or "views"
    executor = ParallelExecutor(
        loaded,
        WorkerGrid(shards, stages),
        folder=folder,
        capacity_tokens=2 * max(contexts) + 2048,
        threads=threads,
        packing=packing,
    )
    try:
        plain = StreamExecutor(loaded, capacity_tokens=256, threads=threads, packing=packing)
        grid = measure_grid(
            executor, plain, contexts=contexts, repeats=repeats, tell=console.print
        ).cost
    finally:
        executor.close()
    if shards > 1:
        even = grid.break_even_tokens
        told = "at no context" if even >= NOWHERE else f"from {even} tokens of context on"
        console.print(f"{shards} shards pay {told}")
    return IterationCosts.of(measured).on_workers(grid).in_profile(measured)


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


def _parse_sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--batch-sizes is {text!r}, expected numbers such as 1,2,4,8") from None
    if min(sizes) < 1:
        raise ValueError(f"--batch-sizes is {text!r}, allowed numbers from 1 up")
    return sizes
