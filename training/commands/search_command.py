"""`supernet search`: the Pareto subnets of a trained supernet; of a decoder, width patterns."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError

from slackfit.output_files import check_outputs, write_each, write_text
from slackfit.profile import LatencyProfile
from slackfit.user_errors import user_errors
from supernet import load_checkpoint, save_checkpoint
from training.commands.search_options import (
    BatchSizeOption,
    CalibrationOption,
    CheckpointOption,
    ChooseOnOption,
    DataOption,
    FinalOption,
    GenerationsOption,
    JsonOption,
    KeepOption,
    MaxLatencyOption,
    MaxMacsOption,
    OutOption,
    PlotOption,
    ProfileOption,
    SamplesOption,
    SeedOption,
    WindowsOption,
)
from training.commands.search_request import SearchRequest, cost_limit
from training.commands.shown_search import SearchBars, print_search
from training.data.checkpoint_data import dataset_of
from training.evaluation.search import SearchOptions, SearchResult, to_json, with_found


def search(
    checkpoint: CheckpointOption,
    data: DataOption = None,
    json_: JsonOption = None,
    plot: PlotOption = None,
    out: OutOption = None,
    keep: KeepOption = None,
    profile: ProfileOption = None,
    batch_size: BatchSizeOption = 1,
    max_macs: MaxMacsOption = None,
    max_latency_ms: MaxLatencyOption = None,
    choose_on: ChooseOnOption = "validation",
    samples: SamplesOption = 48,
    final: FinalOption = 16,
    calibration_images: CalibrationOption = 512,
    windows: WindowsOption = 64,
    generations: GenerationsOption = 20,
    seed: SeedOption = 0,
) -> None:
    """Find the Pareto subnets of a trained supernet: accuracy against MACs or measured latency.

    Of a decoder these are patterns of widths, block by block, and accuracy is agreement with the
    largest on held-out text.
    """
    with user_errors(ValueError, OSError, SafetensorError):
        limit = cost_limit(profile, max_macs, max_latency_ms)
        _check_outputs(json_, plot, out)
        loaded = load_checkpoint(checkpoint)
        request = SearchRequest(
            checkpoint=loaded,
            data=dataset_of(loaded, data, choose_on=choose_on),
            chosen_on=choose_on,
            options=SearchOptions(
                num_samples=samples,
                num_final=final,
                calibration_images=calibration_images,
                windows=windows,
                generations=generations,
                limit=limit,
                seed=seed,
            ),
            profile=None if profile is None else LatencyProfile.load(profile),
            batch_size=batch_size,
        )
        with SearchBars() as bars:
            task = request.search(keep, bars.show)
            result = task.run()
            comparison = task.compare(result)
        found = to_json(result, comparison, **request.header())
        write_each(
            lambda: None if json_ is None else write_text(json_, _text(found)),
            lambda: out is None or save_checkpoint(with_found(loaded, result, task.source), out),
            lambda: plot is None or _plot(result, plot, loaded.name, request.unit),
        )
    if json_ != "-":
        what = "quality" if request.is_of_decoder else "accuracy"
        print_search(result, comparison, request.unit, what)


def _check_outputs(json_: str | None, plot: Path | None, out: Path | None) -> None:
    """Refuse what can't be written before anything is measured. Raises ValueError, OSError."""
    if out is not None and out.exists():
        raise ValueError(f"{out} exists already; choose another --out or delete it")
    check_outputs(json_, plot, folders=[None if out is None else out.parent])


def _text(found: dict[str, object]) -> str:
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


def _plot(result: SearchResult, plot: Path, name: str, unit: str) -> None:
    from training.evaluation.search_plot import plot_search

    plot_search(result, plot, name, unit)
