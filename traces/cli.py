"""The verbs `trace`, `simulate` and `report`; `python -m traces` runs them.

Whatever a user can get wrong ends with exit code 2 and one clear message on stderr, and files
appear whole or not at all. Matplotlib, pyarrow and jinja2 are imported by the verbs that need them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from slackfit.output_files import check_outputs, write_text
from traces.commands.fetch_command import trace_fetch
from traces.commands.fit_command import trace_fit
from traces.commands.output import finish, trace_errors
from traces.commands.plan_command import plan_command
from traces.commands.simulate_command import simulate_command
from traces.commands.simulate_options import SeedOption
from traces.commands.sweep_command import sweep_command

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Traces, simulation and reports.",
)
trace_app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Look at a trace: a file, or a generator such as poisson:rate=100,duration=60.",
)
app.add_typer(trace_app, name="trace")

SpecArgument = Annotated[str, typer.Argument(metavar="SPEC", help="Trace file or generator.")]


@trace_app.command("info")
def trace_info(
    spec: SpecArgument,
    seed: SeedOption = 0,
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write JSON instead of text.")
    ] = None,
) -> None:
    """Say how many queries a trace has, at what rate, how bursty, and where it comes from."""
    with trace_errors():
        from traces.burstiness import describe
        from traces.spec.spec import parse_spec

        check_outputs(json_out)
        info = describe(parse_spec(spec, seed=seed))
        if json_out is None:
            rates = info.pop("rate_over_time")["qps"]
            for name, value in _flat(info):
                typer.echo(f"{name:24} {value}")
            typer.echo(f"{'rate_over_time':24} {_sparkline(rates)}")
        else:
            write_text(json_out, json.dumps(info, indent=1, allow_nan=False) + "\n")


@trace_app.command("convert")
def trace_convert(
    spec: SpecArgument,
    out: Annotated[Path, typer.Argument(metavar="FILE", help=".csv, .csv.gz or .parquet")],
    seed: SeedOption = 0,
) -> None:
    """Write a trace to a file: from another format, or from a generator."""
    with trace_errors():
        from traces.files import write_trace
        from traces.spec.spec import parse_spec

        check_outputs(out)
        trace = parse_spec(spec, seed=seed)
        write_trace(out, trace)
        typer.echo(f"{out}: {len(trace):,} queries over {trace.duration_s:g} s", err=True)


@trace_app.command("plot")
def trace_plot(
    spec: SpecArgument,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Picture: .svg or .png")],
    seed: SeedOption = 0,
) -> None:
    """Draw a trace's rate over time."""
    with trace_errors():
        from traces.report.rate_plot import save_trace_rate
        from traces.spec.spec import parse_spec

        check_outputs(out)
        save_trace_rate(out, parse_spec(spec, seed=seed))
        typer.echo(str(out), err=True)


trace_app.command("fit")(trace_fit)
trace_app.command("fetch")(trace_fetch)


app.command("simulate")(simulate_command)
app.command("sweep")(sweep_command)
app.command("plan")(plan_command)


@app.command("report")
def report_command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders or report.json files.")
    ],
    html_out: Annotated[
        Path, typer.Option("--html", metavar="FILE", help="Where the page goes.")
    ] = Path("report.html"),
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the joined reports.")
    ] = None,
) -> None:
    """Compare runs, simulated or live: one table and one page."""
    with trace_errors():
        from traces.report.report import read_reports

        check_outputs(json_out, html_out)
        reports = [
            {**report, "run": str(run)} if len(runs) > 1 else report
            for run in runs
            for report in read_reports(run)
        ]
        finish(reports, json_out=json_out, html_out=html_out, title="Report")


def _sparkline(values: Sequence[float]) -> str:
    """Return the values as a line of bars from 0 to the highest.

    >>> _sparkline([0.0, 1.0])
    ' \N{FULL BLOCK}'
    """
    bars = " " + "".join(chr(0x2581 + i) for i in range(8))
    highest = max(values) or 1.0
    return "".join(bars[round(v / highest * 8)] for v in values)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            yield f"{prefix}{key}", f"{value:.6g}"
        else:
            yield f"{prefix}{key}", str(value)
