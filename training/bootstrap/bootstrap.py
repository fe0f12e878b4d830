"""`bootstrap`: a pretrained network becomes a supernet that is worth serving, in a given time.

What Intel's BootstrapNAS (Munoz et al., 2021) does, on this project's own training:

1. the network is imported with a classifier for the user's classes, and its channels are sorted by
   what they carry on the user's samples;
2. some of its subnets are measured as they are, which is the front to be improved;
3. three learning rates are tried for a tenth of the time, judged on held-out samples;
4. the rest of the time trains: the whole network alone where its classifier is new, then all sizes;
5. the front is searched, calibrated and reported on test samples, in a checkpoint that serves.

The folder holds a journal, the start and the training's state, so it goes on after any end.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from supernet import Checkpoint, cost, load_checkpoint, save_checkpoint
from training.bootstrap.journal import BootstrapJournal, begin, load_journal
from training.bootstrap.options import BootstrapOptions
from training.bootstrap.recipe import BootstrapRecipe, read_recipe, recipe_of
from training.bootstrap.run_config import CALIBRATION_IMAGES, START, base_config, data_of
from training.bootstrap.short_run import judged, timed_steps
from training.bootstrap.start import check_samples, import_start
from training.config import TrainConfig, config_from_json
from training.data.data import load_dataset, steps_per_epoch
from training.data.samples import Dataset
from training.evaluation.evaluate import measure, uniform_archs
from training.trainer.batch_shares import check_shares
from training.trainer.distributed import ProcessGroup
from training.trainer.resume import RESUME_FILE

_TRY = "try"
_SWEEP, _SEARCH = 0.1, 0.15  # parts of the time
_FEWEST_STEPS = 20  # in which a rate can show what it does
_POINTS = 8  # of the curve of accuracy against time
_BEFORE = 6

Stage = Callable[[str], None]
RunTraining = Callable[[TrainConfig, Path, bool], Checkpoint | None]


def bootstrap(
    options: BootstrapOptions,
    out: Path,
    run_training: RunTraining,
    *,
    resume: bool = False,
    tell: Stage = lambda text: None,
    workers: ProcessGroup | None = None,
) -> Checkpoint | None:
    """Do what is left of a bootstrap in folder `out`; None when training was stopped.

    `run_training(config, out, resume)` trains with the caller's progress, and returns None when it
    was told to stop. `tell` takes a sentence per stage. Of several `workers` the first does all but
    the training, and returns the checkpoint.

    Raises JournalError, DataError, ConfigError, WeightsError, ValueError: before anything trains;
    OtherProcessError where it was another one's.
    """
    workers = workers or ProcessGroup()
    check_shares(options.batch_size, workers.size)
    problem: BaseException | None = None
    if workers.is_first:
        try:
            _prepare(options, out, resume=resume, tell=tell, num_workers=workers.size)
        except BaseException as error:  # an interrupt too: the others wait for this one
            problem = error
    if workers.any(problem is not None):
        raise problem or OtherProcessError("the first process could not begin; it says why")
    config = config_from_json(load_journal(out).config, where=str(out))
    if workers.is_first:
        tell(f"training {config.schedule.steps} steps at a rate of {config.optimizer.lr:g}")
    goes_on = workers.any(workers.is_first and (out / RESUME_FILE).exists())
    return run_training(config, out, goes_on)


class OtherProcessError(RuntimeError):
    """Another of the processes that bootstrap together has failed."""


def _prepare(
    options: BootstrapOptions, out: Path, *, resume: bool, tell: Stage, num_workers: int
) -> None:
    """Everything up to the config of the training run, which is in the journal then."""
    journal = begin(out, _asked(options), resume=resume)
    given = read_recipe(Path(options.recipe)) if options.recipe else None
    data = _load(options)
    for doubt in check_samples(data):
        tell(doubt)
    if not (out / START).exists():
        with _spending(journal):
            start = import_start(options.source, data)
            if start.definition.space.largest.resolution != options.source.resolution:
                data = _load(options, start.definition.space.largest.resolution)
            out.mkdir(parents=True, exist_ok=True)
            save_checkpoint(start, out / START)
        journal.save(out)
    start = load_checkpoint(out / START)
    data = _load(options, start.definition.space.largest.resolution).read_for(start.input)
    if not journal.before:
        tell("measuring the network as it is")
        _measure_before(journal, start, data, options)
        journal.save(out)
    if not journal.config:
        recipe = given or recipe_of(start.definition)
        config = base_config(options, recipe, journal, start, out)
        planned = _planned(config, recipe, journal, data, options, out, tell, num_workers)
        journal.config = asdict(planned)
        journal.save(out)


def _asked(options: BootstrapOptions) -> dict[str, Any]:
    return {**asdict(options), "source": options.source._asdict(), "threads": None}


def _load(options: BootstrapOptions, resolution: int = 0) -> Dataset:
    return load_dataset(data_of(options, resolution), options.seed)


def _measure_before(
    journal: BootstrapJournal, start: Checkpoint, data: Dataset, options: BootstrapOptions
) -> None:
    """Some of the uniform subnets as they are, and whether the largest knows the data's classes."""
    definition = start.definition
    archs = sorted(uniform_archs(definition.space), key=lambda a: cost(definition, a).macs)
    some = [archs[round(i * (len(archs) - 1) / (_BEFORE - 1))] for i in range(_BEFORE)]
    began_s = time.perf_counter()
    with _spending(journal):
        for arch in dict.fromkeys(some):
            own = start.norm_statistics.get(arch.subnet_id)
            measured = measure(
                start.state,
                definition,
                arch,
                input_spec=start.input,
                calibration=data.train,
                calibration_images=CALIBRATION_IMAGES,
                held_out=data.validation,
                statistics=own,
            )
            journal.before.append(
                {
                    "id": arch.subnet_id,
                    "macs": cost(definition, arch).macs,
                    "accuracy": measured.accuracy,
                }
            )
    journal.measure_s = (time.perf_counter() - began_s) / len(journal.before)
    chance = 1.0 / len(data.classes)
    journal.knows_classes = journal.before[-1]["accuracy"] > min(0.9, 5.0 * chance)


def _planned(
    config: TrainConfig,
    recipe: BootstrapRecipe,
    journal: BootstrapJournal,
    data: Dataset,
    options: BootstrapOptions,
    out: Path,
    tell: Stage,
    num_workers: int,
) -> TrainConfig:
    """The run with the rate that does best on held-out samples, as long as the time allows.

    Rates are tried by this process alone; the run's steps are shared out among `num_workers`.
    """
    per_epoch = steps_per_epoch(data.train, config.data.batch_size)
    with _spending(journal):
        mine = replace(config.data, batch_size=config.data.batch_size // num_workers)
        times = timed_steps(replace(config, data=mine), data, out / _TRY)
    step_s = times.mean_s(config.schedule.delay)
    lr = _best_rate(config, journal, step_s * num_workers, data, options, out, tell)
    shutil.rmtree(out / _TRY, ignore_errors=True)
    search_s = _SEARCH * options.minutes * 60
    left_s = options.minutes * 60 - journal.spent_s - search_s
    steps = int(left_s / step_s)
    if steps < 2 * _FEWEST_STEPS:
        raise ValueError(
            f"{options.minutes:g} minutes are too short: {journal.spent_s / 60:.1f} were spent on "
            f"measuring, {search_s / 60:.1f} are for the search, and a step takes {step_s:.2f} s; "
            "give more minutes, a smaller --batch-size or --resolution"
        )
    tell(
        f"of {options.minutes:g} minutes {journal.spent_s / 60:.1f} are spent; some "
        f"{steps * step_s / 60:.1f} are for training, {search_s / 60:.1f} for the search"
    )
    epochs = steps / per_epoch
    searched = max(0, int(search_s / max(journal.measure_s, 1e-3)) - _BEFORE)
    uniforms = len(uniform_archs(load_checkpoint(out / START).definition.space))
    return replace(
        config,
        schedule=replace(config.schedule, steps=steps, ramp_epochs=recipe.ramp * epochs),
        optimizer=replace(config.optimizer, lr=lr, warmup_epochs=min(1.0, 0.05 * epochs)),
        evaluation=replace(
            config.evaluation,
            uniform=searched >= uniforms and not options.is_alone,
            random_archs=0 if options.is_alone else min(24, max(4, (searched - uniforms) // 2)),
            search=0 if options.is_alone else min(16, max(0, (searched - uniforms) // 2)),
            every_epochs=max(1, round(epochs / _POINTS)),
        ),
    )


def _best_rate(
    config: TrainConfig,
    journal: BootstrapJournal,
    step_s: float,
    data: Dataset,
    options: BootstrapOptions,
    out: Path,
    tell: Stage,
) -> float:
    """Of a third of the recipe's rate, it, and three times it; it alone where time is too short."""
    steps = int(_SWEEP * options.minutes * 60 / 3 / step_s)
    if steps < _FEWEST_STEPS:
        tell(f"too little time to try rates: the recipe's {config.optimizer.lr:g} is taken")
        return config.optimizer.lr
    tell(f"trying three rates for {steps} steps each")
    for factor in (1 / 3, 1.0, 3.0):
        lr = config.optimizer.lr * factor
        if any(tried["lr"] == lr for tried in journal.rates):
            continue
        with _spending(journal):
            accuracy = judged(config, lr, steps, data, out / _TRY)
        journal.rates.append({"lr": lr, "accuracy": accuracy})
        journal.save(out)
    return max(journal.rates, key=lambda tried: tried["accuracy"])["lr"]


@contextmanager
def _spending(journal: BootstrapJournal) -> Iterator[None]:
    """Add the time that a stage takes to what was spent."""
    began_s = time.perf_counter()
    try:
        yield
    finally:
        journal.spent_s += time.perf_counter() - began_s
