"""The verb `sweep`: a grid of loads and policies in parallel, as a table, JSON and two pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from traces.commands.simulate_options import DenseOption, OverheadOption, ProfileOption

if TYPE_CHECKING:
    from traces.simulation.cells import Cell, CellScore


def sweep_command(
    profile: ProfileOption,
    rates: Annotated[
        str, typer.Option(metavar="QPS[,QPS...]", help="Mean rates; FROM:TO:STEP for a range.")
    ],
    policy: Annotated[
        str, typer.Option(metavar="NAME[,NAME...]", help="Policies; NAME@key=value for parameters.")
    ] = "slackfit,drainfit,fixed:smallest",
    cv2: Annotated[
        str, typer.Option("--burstiness", metavar="X[,X...]", help="Squared CVs of the gaps.")
    ] = "1,8",
    duration: Annotated[float, typer.Option(min=0.001, help="Length of each trace (s).")] = 5.0,
    slo_ms: Annotated[float, typer.Option(min=0.001, help="Deadline of each query.")] = 36.0,
    workers: Annotated[int, typer.Option(min=1, help="Devices.")] = 8,
    overhead_ms: OverheadOption = 0.0,
    subnets: DenseOption = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per cell, 0 up.")] = 1,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes; default: one per core.")
    ] = None,
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write one row per cell.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write plane.svg and heatmap.svg there."),
    ] = None,
) -> None:
    """Simulate a grid of loads x policies on gamma traffic; draw attainment against accuracy."""
    from slackfit.output_files import check_outputs, write_each, write_text
    from traces.commands.output import trace_errors

    with trace_errors():
        from slackfit.profile import LatencyProfile
        from traces.commands.simulate_request import derived
        from traces.simulation.cells import Cell, run_cells

        check_outputs(json_out, folders=[out])
        derived(LatencyProfile.load(profile), overhead_ms, subnets)  # reports what is wrong, once
        cells = [
            Cell(
                name.strip(),
                f"gamma:rate={rate:g},cv2={burst:g},duration={duration:g}",
                seed,
                str(profile),
                slo_ms / 1e3,
                workers,
                overhead_ms / 1e3,
                subnets,
            )
            for rate in _numbers(rates, "rates")
            for burst in _numbers(cv2, "burstiness")
            for seed in range(seeds)
            for name in policy.split(",")
        ]
        scores = run_cells(cells, processes=processes, progress=_show)
        rows = _rows(cells, scores)
        text = json.dumps(rows, indent=1, allow_nan=False) + "\n"
        write_each(
            lambda: None if json_out is None else write_text(json_out, text),
            lambda: None if out is None else _draw(out, rows),
        )
        for row in rows if json_out != "-" else []:
            typer.echo(
                f"{row['rate_qps']:8g} qps  CV2 {row['cv2']:4g}  {row['policy']:32}"
                f" attainment {row['slo_attainment']:.4f}  accuracy"
                f" {row['mean_serving_accuracy']:.4f}  utility {row['utility']:.4f}"
            )


def _draw(out: Path, rows: list[dict[str, Any]]) -> None:
    from traces.report.sweep_plots import save_heat_map, save_plane

    save_plane(out / "plane.svg", rows)
    save_heat_map(out / "heatmap.svg", rows)


def _rows(cells: list[Cell], scores: list[CellScore]) -> list[dict[str, Any]]:
    """Return one row per load and policy, means over the seeds."""
    from traces.simulation.cells import estimate

    grouped: dict[tuple[str, str], list[CellScore]] = {}
    for cell, score in zip(cells, scores, strict=True):
        grouped.setdefault((cell.spec, cell.policy), []).append(score)
    rows: list[dict[str, Any]] = []
    for (spec, policy), group in grouped.items():
        keys = dict(pair.split("=") for pair in spec.partition(":")[2].split(","))
        utility = estimate(s.utility for s in group)
        rows.append(
            {
                "rate_qps": float(keys["rate"]),
                "cv2": float(keys["cv2"]),
                "policy": policy,
                "slo_attainment": estimate(s.attainment for s in group).mean,
                "mean_serving_accuracy": estimate(s.accuracy for s in group).mean,
                "utility": utility.mean,
                "utility_half_width": utility.half_width,
                "seeds": len(group),
                "trace": spec,
            }
        )
    return rows


def _numbers(text: str, what: str) -> list[float]:
    """Return the numbers of `1,2,5` or `1000:4000:1000` (both ends in). Raises TraceError."""
    from traces.trace import TraceError

    try:
        if ":" in text:
            first, last, step = (float(part) for part in text.split(":"))
            count = int((last - first) / step + 1e-9) + 1
            numbers = [first + i * step for i in range(count)]
        else:
            numbers = [float(part) for part in text.split(",")]
    except (ValueError, ZeroDivisionError):
        numbers = []
    if not numbers or not all(0 < number < float("inf") for number in numbers):
        raise TraceError(f"{what} is {text!r}, allowed numbers above 0: A,B,... or FROM:TO:STEP")
    return numbers


def _show(done: int, count: int) -> None:
    if done % 50 == 0 or done == count:
        typer.echo(f"{done}/{count} cells", err=True)
