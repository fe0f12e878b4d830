"""`supernet bench streams`: the options; `bench.py` is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serve.bench.rows import Tell, write_rows
from slackfit.output_files import check_outputs
from slackfit.user_errors import user_errors

if TYPE_CHECKING:
    from slackfit.profile import LatencyProfile

_EXAMPLE = Path(__file__).parents[3] / "profiles" / "smollm2_135m_example.json"


def bench_streams(
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the list of rows.")
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="Only these: chunking, capacity, overload, lars, cost, fidelity, live, processor, "
            "door, peers.",
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Profile with the cost of iterations; default: an example, and for chunking one "
            "that is measured here first.",
        ),
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Trace with token counts; default: drawn like the Azure conversation of 2023.",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A decoder, to measure on as well.")
    ] = None,
    gguf: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What it was imported from, for llama.cpp (peers)."),
    ] = None,
    streams: Annotated[int, typer.Option(min=50, help="Streams of a run.")] = 900,
    seeds: Annotated[int, typer.Option(min=1, help="How often traffic is drawn.")] = 3,
) -> None:
    """Measure streams under deadlines: chunking, capacity, overload, orders, the simulator."""
    from serve.bench.streams.bench import StreamsBench
    from serve.bench.streams.setting import StreamSetting, drawn_conversation
    from slackfit.profile import LatencyProfile
    from slackfit.streams.iteration_cost import IterationCosts
    from traces.spec.spec import parse_spec

    with user_errors(ValueError, RuntimeError, ImportError, OSError):
        check_outputs(json_out)
        table = LatencyProfile.load(profile or _EXAMPLE)
        setting = StreamSetting(
            costs=IterationCosts.of(table),
            profile=table.name,
            base=drawn_conversation() if trace is None else parse_spec(trace, seed=0),
            seeds=tuple(range(seeds)),
            num_streams=streams,
        )
        bench = StreamsBench(
            setting,
            table,
            checkpoint=checkpoint,
            packing=table.packing or "views",
            gguf=gguf,
            measure=_measure_here if profile is None else None,
            tell=lambda text: typer.echo(text, err=True),
        )
        rows = bench.run(None if part is None else [name.strip() for name in part.split(",")])
        lines = (f"{row['value']:12.4f} {row['unit']:10} {row['figure']}" for row in rows)
        write_rows(rows, json_out, "\n".join(lines))


def _measure_here(tell: Tell) -> LatencyProfile:
    from serve.bench.streams.measured_costs import measured_here  # torch, which few parts need

    return measured_here(tell)
