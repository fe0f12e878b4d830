"""One whole run: train, calibrate, evaluate, write the checkpoint folder."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import torch

from subnetact.device import device_name, has_bf16
from supernet import (
    Checkpoint,
    InputSpec,
    ServedSubnet,
    SupernetDefinition,
    define_supernet,
    load_checkpoint,
    save_checkpoint,
)
from supernet.weights.expected_input import input_of
from supernet.weights.import_weights import import_supernet
from supernet.weights.naming import State
from training.config import TrainConfig
from training.data.inherited_split import load_inheriting
from training.data.samples import Dataset, untrained_classes
from training.evaluation.collapse import collapsed
from training.evaluation.decoder import check_decoder, measured_decoder, watch_decoder
from training.evaluation.evaluate import evaluate, watched_archs
from training.evaluation.judge import reported_on
from training.evaluation.low_bit import SERVED, measure_low_bit, with_low_bit_entries
from training.evaluation.search import Search, SearchOptions, with_found
from training.graphs.node_run import train_nodes
from training.strategies.make_strategy import trained_alone
from training.trainer.batch_shares import few_samples
from training.trainer.distributed import ProcessGroup
from training.trainer.resume import RESUME_FILE
from training.trainer.run_log import RunLog
from training.trainer.trainer import EpochEnd, Progress, Trainer

EvaluationProgress = Callable[[int, int], None]


class OutputExistsError(ValueError):
    """The output folder already holds a run."""


def train(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    evaluation_progress: EvaluationProgress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    workers: ProcessGroup | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Checkpoint | None:
    """Run `config` into folder `out` and return the checkpoint, None when stopped before the end.

    `tell` takes what a user should know before it begins. Of several `workers` the first
    evaluates, writes and returns the checkpoint.

    Raises OutputExistsError, ResumeError, TrainingDivergedError, or ValueError for a config that
    does not fit the supernet or the data.
    """
    if config.data.name == "graph":
        return train_nodes(
            config,
            out,
            resume=resume,
            progress=progress,
            evaluation_progress=evaluation_progress,
            should_stop=should_stop,
        )
    parent = _parent(config)
    definition, initial = _supernet(config)
    config, data = load_inheriting(config, parent)
    _check_fits(definition, data, config)
    if initial is not None:
        data = data.read_for(_expected_input(config, definition, parent, data.input))
    workers = workers or ProcessGroup()
    # The first alone looks: to another one a file may be what the first has just saved.
    if workers.any(not resume and workers.is_first and (out / RESUME_FILE).exists()):
        raise OutputExistsError(f"{out} already holds a run; pass --resume or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    if config.threads:
        torch.set_num_threads(config.threads)
    for doubt in _doubts(config, definition, data, workers):
        tell(doubt)
    trainer = Trainer(
        config, definition, data, out, resume=resume, workers=workers, initial=initial
    )

    is_done = trainer.run(
        progress=progress,
        should_stop=should_stop,
        epoch_end=_watching(config, definition, trainer, data),
    )
    if not is_done or not workers.is_first:
        return None
    trained = _trained(config, definition, trainer, data)
    if definition.family.generates:
        checkpoint = measured_decoder(trained, data)
    else:
        checkpoint = _measured(config, trained, data, out, evaluation_progress)
    checkpoint = _with_low_bit(config, checkpoint, data, out)
    save_checkpoint(checkpoint, out)
    return checkpoint


def _doubts(
    config: TrainConfig, definition: SupernetDefinition, data: Dataset, workers: ProcessGroup
) -> list[str]:
    """What will be worse than one may think, each in a sentence; told by the first worker."""
    doubts = [few_samples(config, definition, workers.size)]
    if config.amp == "bf16" and not has_bf16(config.device):
        doubts.append(
            f"amp is bf16, which {device_name(config.device)} has no instructions for: steps take "
            "several times as long as with amp=off (amp=auto takes what is faster)"
        )
    if gone := untrained_classes(data):
        doubts.append(
            f"no sample of class {gone} is left to train on: one part of the samples is held out "
            "to choose on, and data.limit may leave out more; subnets can't learn it"
        )
    return [doubt for doubt in doubts if doubt and workers.is_first]


def _watching(
    config: TrainConfig, definition: SupernetDefinition, trainer: Trainer, data: Dataset
) -> EpochEnd:
    """What the log is told of some subnets after every so many epochs."""

    def epoch_end(epoch: int) -> dict[str, float]:
        every = config.evaluation.every_epochs
        if not every or epoch % every:
            return {}
        if definition.family.generates:
            return watch_decoder(trainer.state(), definition, data)
        watched = _watch(config, definition, trainer, data)
        return {f"accuracy/{s.subnet_id}": s.accuracy for s in watched}

    return epoch_end


def _trained(
    config: TrainConfig, definition: SupernetDefinition, trainer: Trainer, data: Dataset
) -> Checkpoint:
    """What a run made, before anything is measured."""
    return Checkpoint(
        name=config.name,
        definition=definition,
        input=data.input,
        classes=data.classes,
        state=trainer.state(),
        norm_statistics={},
        subnets=(),
        permutation=trainer.permutation,
        text=data.text,
        provenance={
            "config": asdict(config),
            "split": data.split.to_json() if data.split else None,
            **({} if definition.family.generates else {"training_macs": trainer.macs()}),
            "versions": {"torch": version("torch"), "python": platform.python_version()},
        },
    )


def _measured(
    config: TrainConfig,
    trained: Checkpoint,
    data: Dataset,
    out: Path,
    progress: EvaluationProgress | None,
) -> Checkpoint:
    """The checkpoint with the front on the validation samples, reported on the test samples."""
    alone = trained_alone(config, trained.definition.space)
    options = SearchOptions(
        also=() if alone is None else (alone,),
        uniform=config.evaluation.uniform,
        num_samples=config.evaluation.random_archs,
        num_final=config.evaluation.search,
        calibration_images=config.evaluation.calibration_images,
        seed=config.seed,
    )
    tell = progress or (lambda done, total: None)
    result = Search(
        trained, data, options, progress=lambda what, done, total: tell(done, total)
    ).run()
    accuracies = {arch: aim.accuracy for arch, aim in result.measured.items()}
    watched = watched_archs(trained.definition.space) if alone is None else [alone]
    failure = collapsed({arch: accuracies[arch] for arch in watched}, data.validation.labels)
    RunLog(out, tensorboard=False).add_line(
        {
            "accuracy": {arch.subnet_id: accuracy for arch, accuracy in accuracies.items()},
            "test_accuracy": {s.arch.subnet_id: s.test for s in result.subnets},
            **({"collapsed": failure} if failure else {}),
        }
    )
    checkpoint = with_found(
        trained, result, reported_on(data, config.evaluation.calibration_images, trained.definition)
    )
    if not failure:
        return checkpoint
    return replace(checkpoint, provenance={**checkpoint.provenance, "collapsed": failure})


def _with_low_bit(
    config: TrainConfig, checkpoint: Checkpoint, data: Dataset, out: Path
) -> Checkpoint:
    """The checkpoint with its low-bit subnets, where the run trained them; the log tells of all."""
    quantiser = config.schedule.low_bit
    if quantiser == "none":
        return checkpoint
    images = config.evaluation.calibration_images
    measured = measure_low_bit(checkpoint, data, quantiser, calibration_images=images)
    accuracies = {m.subnet.subnet_id: m.accuracy for m in measured}
    RunLog(out, tensorboard=False).add_line({f"{quantiser}_accuracy": accuracies})
    return with_low_bit_entries(checkpoint, measured) if quantiser == SERVED else checkpoint


def _parent(config: TrainConfig) -> Checkpoint | None:
    """The checkpoint of ours that a run goes on from."""
    options = config.supernet
    is_ours = bool(options.weights) and options.origin == "supernet"
    return load_checkpoint(options.weights) if is_ours else None


def _expected_input(
    config: TrainConfig,
    definition: SupernetDefinition,
    parent: Checkpoint | None,
    of_data: InputSpec,
) -> InputSpec:
    """The input as the weights expect it, in the size of the data."""
    options = config.supernet
    if parent is not None:
        expected = parent.input
    else:
        is_named = options.origin in ("timm", "torchvision") and not Path(options.weights).exists()
        name = Path(options.weights).name if is_named else options.variant
        expected = input_of(definition, name, options.origin)
    if expected.kind != of_data.kind or expected.channels != of_data.channels:
        raise ValueError(
            f"the weights in {options.weights} expect {expected.kind} of {expected.channels} "
            f"channels, the data are {of_data.kind} of {of_data.channels}"
        )
    return replace(expected, height=of_data.height, width=of_data.width)


def _supernet(config: TrainConfig) -> tuple[SupernetDefinition, State | None]:
    """The supernet, and the weights to start from if they are given."""
    options = config.supernet
    if not options.weights:
        return define_supernet(options.variant, **options.overrides), None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # a new classifier is drawn
        return import_supernet(
            options.weights,
            origin=options.origin,
            supernet=options.variant,
            new_head=True,
            **options.overrides,
        )


def _watch(
    config: TrainConfig, definition: SupernetDefinition, trainer: Trainer, data: Dataset
) -> tuple[ServedSubnet, ...]:
    alone = trained_alone(config, definition.space)
    return evaluate(
        trainer.state(),
        definition,
        watched_archs(definition.space) if alone is None else [alone],
        input_spec=data.input,
        calibration=data.train,
        calibration_images=config.evaluation.calibration_images,
        held_out=data.validation,
    ).subnets


def _check_fits(definition: SupernetDefinition, data: Dataset, config: TrainConfig) -> None:
    num_classes, in_channels = definition.config.num_classes, definition.config.in_channels
    if definition.family.generates or data.text is not None:
        check_decoder(definition, data, config)
        return
    if num_classes != len(data.classes):
        raise ValueError(
            f"the supernet has {num_classes} classes, data set {data.name} has "
            f"{len(data.classes)}; set supernet.overrides.num_classes={len(data.classes)}"
        )
    if in_channels != data.input.channels:
        raise ValueError(
            f"the supernet takes {in_channels} channels, data set {data.name} has "
            f"{data.input.channels}; set supernet.overrides.in_channels={data.input.channels}"
        )
