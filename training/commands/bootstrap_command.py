"""`supernet bootstrap`: from a pretrained network to a supernet, in one command."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import typer
from safetensors import SafetensorError

from slackfit.output_files import check_outputs
from slackfit.plain_console import plain_console
from slackfit.user_errors import user_errors
from supernet import Checkpoint
from training.bootstrap.bootstrap import OtherProcessError, bootstrap
from training.bootstrap.journal import load_journal
from training.bootstrap.options import BootstrapOptions
from training.bootstrap.page import write_page
from training.bootstrap.start import PretrainedSource
from training.commands.bootstrap_options import (
    ORIGINS,
    ActivationCheckpointingOption,
    AloneOption,
    BatchSizeOption,
    DataOption,
    DeviceOption,
    MicroBatchSizeOption,
    MinutesOption,
    OriginOption,
    OutOption,
    RecipeOption,
    ResolutionOption,
    ResumeOption,
    SeedOption,
    SourceArgument,
    SupernetOption,
    ThreadsOption,
    ValidationOption,
    WeightsOption,
)
from training.commands.shown_training import stopped, table_of, train_with_progress
from training.trainer.distributed import ProcessGroup
from training.trainer.resume import SaveError
from training.trainer.trainer import TrainingDivergedError


def bootstrap_command(
    source: SourceArgument,
    origin: OriginOption,
    data: DataOption,
    out: OutOption,
    minutes: MinutesOption = 90.0,
    resolution: ResolutionOption = 0,
    weights: WeightsOption = None,
    supernet: SupernetOption = "",
    batch_size: BatchSizeOption = 64,
    validation: ValidationOption = 0.1,
    recipe: RecipeOption = None,
    micro_batch_size: MicroBatchSizeOption = 0,
    activation_checkpointing: ActivationCheckpointingOption = False,
    alone: AloneOption = False,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 0,
    seed: SeedOption = 0,
    resume: ResumeOption = False,
) -> None:
    """Make a supernet that is worth serving of a pretrained network, for your classes.

    Under torchrun the processes train together: `torchrun --nproc-per-node 2 -m serve bootstrap`.
    """
    with user_errors(ValueError, OSError):
        if origin not in ORIGINS:
            raise ValueError(f"--from {origin}: allowed {', '.join(ORIGINS)}")
        check_outputs(folders=[out])
        options = BootstrapOptions(
            source=PretrainedSource(source, origin, supernet, str(weights or ""), resolution),
            data=str(data),
            minutes=minutes,
            batch_size=batch_size,
            device=device,
            threads=threads,
            seed=seed,
            validation=validation,
            recipe=str(recipe or ""),
            micro_batch_size=micro_batch_size,
            activation_checkpointing=activation_checkpointing,
            is_alone=alone,
        )
    checkpoint, is_first = _run(options, out, resume=resume)
    if not is_first:
        return
    words = ["supernet", *sys.argv[1:]]
    if checkpoint is None:
        raise stopped(words if resume else [*words, "--resume"])
    with user_errors(OSError, ValueError):
        page = write_page(out, checkpoint, load_journal(out), shlex.join(words))
    plain_console().print(table_of(checkpoint))
    _say(f"checkpoint: {out}, page: {page}")


def _run(options: BootstrapOptions, out: Path, *, resume: bool) -> tuple[Checkpoint | None, bool]:
    """Bootstrap with the processes that torchrun started, or alone.

    Returns the checkpoint (None: it was stopped) and whether this process is the one that reports.
    """
    workers = ProcessGroup()
    try:
        with user_errors(
            *(ValueError, OSError, SafetensorError, SaveError),
            *(TrainingDivergedError, OtherProcessError),
        ):
            workers = ProcessGroup.from_torchrun(os.environ, options.device)
            checkpoint = bootstrap(
                options,
                out,
                lambda config, folder, goes_on: train_with_progress(
                    config, folder, resume=goes_on, workers=workers
                ),
                resume=resume,
                tell=_say,
                workers=workers,
            )
    except KeyboardInterrupt:
        checkpoint = None
    finally:
        workers.close()
    return checkpoint, workers.is_first


def _say(text: str) -> None:
    typer.echo(text, err=True)
