"""`supernet search`: the Pareto subnets of a trained supernet; of a decoder, width patterns."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from safetensors import SafetensorError

from slackfit.output_files import check_outputs, write_each, write_text
from slackfit.profile import LatencyProfile
from slackfit.user_errors import user_errors
from supernet import load_checkpoint, save_checkpoint
from training.data.checkpoint_data import ChooseOn, dataset_of
from training.evaluation.journal import SearchJournal
from training.evaluation.search import (
    Comparison,
    Search,
    SearchOptions,
    SearchResult,
    to_json,
    with_found,
)

console = Console(stderr=True)


def search(
    checkpoint: Annotated[Path, typer.Option(help="A checkpoint folder.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Data folder, of a decoder text files (comma-separated); default: what the "
            "checkpoint was trained on."
        ),
    ] = None,
    json_: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the result.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture (.png, .svg, .pdf).")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write a checkpoint folder that serves what was found.")
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(help="Keep measurements in this file, and go on from those in it."),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Measured latency is the cost, instead of MACs.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Of the latencies; of a decoder streams that decode.")
    ] = 1,
    max_macs: Annotated[float | None, typer.Option(help="In millions.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="With --profile.")] = None,
    choose_on: Annotated[
        ChooseOn,
        typer.Option(
            help="Images held out of training, or half of the test images (the others report): "
            "for weights that were trained on all training images."
        ),
    ] = "validation",
    samples: Annotated[
        int, typer.Option(min=0, help="Random subnets to measure besides the uniform ones.")
    ] = 48,
    final: Annotated[
        int, typer.Option(min=0, help="Predicted subnets to measure; 0 predicts nothing.")
    ] = 16,
    calibration_images: Annotated[int, typer.Option(min=1, help="Per subnet.")] = 512,
    windows: Annotated[
        int, typer.Option(min=2, help="Decoders: windows of held-out text, per subnet and split.")
    ] = 64,
    generations: Annotated[int, typer.Option(min=0, help="Of the evolution.")] = 20,
    seed: Annotated[int, typer.Option(help="Same seed, same result.")] = 0,
) -> None:
    """Find the Pareto subnets of a trained supernet: accuracy against MACs or measured latency.

    Of a decoder these are patterns of widths, block by block, and accuracy is agreement with the
    largest on held-out text.
    """
    with user_errors(ValueError, OSError, SafetensorError):
        limit = _limit(profile, max_macs, max_latency_ms)
        if out is not None and out.exists():
            raise ValueError(f"{out} exists already; choose another --out or delete it")
        check_outputs(json_, plot, folders=[None if out is None else out.parent])
        loaded = load_checkpoint(checkpoint)
        is_decoder = loaded.definition.family.generates
        options = SearchOptions(
            num_samples=samples,
            num_final=final,
            calibration_images=calibration_images,
            windows=windows,
            generations=generations,
            limit=limit,
            seed=seed,
        )
        held_out = dataset_of(loaded, data, choose_on=choose_on)
        table = None if profile is None else LatencyProfile.load(profile)
        about = {
            "checkpoint": loaded.fingerprint,
            "data": held_out.split.digest if held_out.split else held_out.name,
            "chosen_on": choose_on,
            "images": [len(held_out.train), len(held_out.validation), len(held_out.test)],
            **({"windows": windows} if is_decoder else {"calibration_images": calibration_images}),
        }
        with _Bars() as bars:
            task = Search(
                loaded,
                held_out,
                options,
                profile=table,
                batch_size=batch_size,
                journal=SearchJournal(keep, about),
                progress=bars.show,
            )
            result = task.run()
            comparison = task.compare(result)
        unit = "MACs" if profile is None else "ms"
        most = windows if is_decoder else sys.maxsize
        header = {
            "checkpoint": loaded.fingerprint,
            "data": held_out.name,
            "chosen_on": choose_on,
            "num_validation": min(most, len(held_out.validation)),
            "num_test": min(most, len(held_out.test)),
            "cost": "macs" if profile is None else f"latency_s of batch {batch_size}",
            "limit": None if limit == float("inf") else limit,
            "seed": seed,
        }
        text = json.dumps(to_json(result, comparison, **header), indent=1, allow_nan=False) + "\n"
        write_each(
            lambda: None if json_ is None else write_text(json_, text),
            lambda: out is None or save_checkpoint(with_found(loaded, result, task.source), out),
            lambda: plot is None or _plot(result, plot, loaded.name, unit),
        )
    if json_ != "-":
        _print(result, comparison, unit, "quality" if is_decoder else "accuracy")


def _plot(result: SearchResult, plot: Path, name: str, unit: str) -> None:
    from training.evaluation.search_plot import plot_search

    plot_search(result, plot, name, unit)


def _limit(profile: Path | None, max_macs: float | None, max_latency_ms: float | None) -> float:
    if (max_latency_ms is not None) and profile is None:
        raise ValueError("--max-latency-ms needs --profile, a measured latency profile")
    if max_macs is not None and profile is not None:
        raise ValueError("--max-macs and --profile: with a profile the limit is --max-latency-ms")
    if max_latency_ms is not None:
        return max_latency_ms / 1e3
    return float("inf") if max_macs is None else max_macs * 1e6


class _Bars(Progress):
    """One bar per part of the search."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description:<16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        super().__init__(*columns, console=console)
        self._rows: dict[str, TaskID] = {}

    def show(self, what: str, done: int, total: int) -> None:
        """Advance a part."""
        if what not in self._rows:
            self._rows[what] = self.add_task(what, total=total)
        self.update(self._rows[what], completed=done)


def _print(result: SearchResult, comparison: Comparison, unit: str, what: str) -> None:
    scale = 1e3 if unit == "ms" else 1e-6
    table = Table(title=f"{len(result.subnets)} of {len(result.measured)} measured subnets")
    for name in ("subnet", "ms" if unit == "ms" else "MMACs", f"{what} (%)", "95 % interval"):
        table.add_column(name, justify="left" if name == "subnet" else "right")
    for s in result.subnets:
        low, high = (100 * x for x in s.ci95)
        table.add_row(
            s.arch.subnet_id, f"{s.cost * scale:.3g}", f"{s.test:.2%}".rstrip("%"),
            f"{low:.1f} to {high:.1f}",
        )  # fmt: skip
    Console().print(table)
    volumes = {"found": comparison.found, "ladder": comparison.ladder, "gain": comparison.gain}
    for name, volume in volumes.items():
        low, high = volume.ci95
        Console().print(f"hyper-volume, {name}: {volume.value:.4f} ({low:.4f} to {high:.4f})")
    for d in comparison.dominated:
        Console().print(
            f"{d.subnet.subnet_id} is beaten by {d.by.subnet_id}, no more expensive: "
            f"{100 * d.gain:.2f} points ({100 * d.ci95[0]:.2f} to {100 * d.ci95[1]:.2f})",
            highlight=False,
            soft_wrap=True,
        )
    if result.quality is None:
        return
    Console().print(
        f"predictor: Kendall's tau {result.quality.tau:.2f}, mean error "
        f"{100 * result.quality.mean_error:.2f} points"
    )
