"""`supernet trace fit`: a generator that behaves like a trace, and how well it does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer


def trace_fit(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="Trace file or generator.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the generator; use it as fitted:path=FILE."),
    ] = None,
    holdout: Annotated[float, typer.Option(help="Fraction held out for the check.")] = 0.4,
    blocks: Annotated[
        int,
        typer.Option(min=1, help="Hold out the end of each of so many blocks; 1: of the trace."),
    ] = 1,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.", min=0)] = 0,
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the check as JSON.")
    ] = None,
) -> None:
    """Fit a generator to a trace and check it on a held-out part: rate, dispersion, tail."""
    from slackfit.output_files import check_outputs, write_each, write_text
    from traces.commands.output import trace_errors

    with trace_errors():
        from traces.generators.fit import check_fit, fit
        from traces.spec.spec import parse_spec

        check_outputs(out, json_out)
        trace = parse_spec(spec, seed=seed)
        check = check_fit(trace, holdout=holdout, blocks=blocks, seed=seed)
        text = json.dumps(check, indent=1, allow_nan=False) + "\n"
        write_each(
            lambda: None if json_out is None else write_text(json_out, text),
            lambda: None if out is None else write_text(out, fit(trace).to_json() + "\n"),
        )
        if out is not None:
            typer.echo(f"{out}: use it as fitted:path={out}", err=True)
        if json_out != "-":
            _print(check)


def _print(check: Mapping[str, Any]) -> None:
    rate = check["rate_qps"]
    typer.echo(
        f"rate (queries/s): {rate['fitted']:.6g} generated, {rate['fitted_part']:.6g} in the "
        f"fitted part, {rate['held_out']:.6g} held out"
    )
    typer.echo("\nindex of dispersion        held out  95 % interval           generated")
    for row in check["dispersion"]:
        low, high = row["interval"]
        verdict = "inside" if row["is_inside"] else "OUTSIDE"
        typer.echo(
            f"{row['window_s']:>9g} s x {row['windows']:<9,} {row['held_out']:>8.4g}  "
            f"{low:>8.4g} to {high:<8.4g}  {row['fitted']:>10.4g}  {verdict}"
        )
    typer.echo("\nqueries per window         held out p50 p99 p99.9    generated p50 p99 p99.9")
    for row in check["tail"]:
        held, made = (" ".join(f"{q:>7.5g}" for q in row[k]) for k in ("held_out", "fitted"))
        typer.echo(f"{row['window_s']:>9g} s            {held}      {made}")
