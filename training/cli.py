"""`supernet train`: the command line of the trainer (`python -m training` is the same)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from safetensors import SafetensorError

from slackfit.plain_console import plain_console
from slackfit.user_errors import user_errors
from training.commands.shown_training import stopped, table_of, train_with_progress, warn
from training.config import load_config
from training.trainer.distributed import ProcessGroup
from training.trainer.resume import SaveError
from training.trainer.trainer import TrainingDivergedError


def train(
    config: Annotated[Path, typer.Option(help="TOML file with the run's configuration.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint, the log and the state.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change one key: section.key=value.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the state saved in --out.")] = False,
) -> None:
    """Train a supernet, calibrate and evaluate its subnets, write a checkpoint folder.

    Under torchrun the processes train together: `torchrun --nproc-per-node 2 -m training ...`.
    """
    workers = ProcessGroup()
    try:
        with user_errors(ValueError, OSError, SafetensorError, SaveError, TrainingDivergedError):
            options = load_config(config, set_ or ())
            workers = ProcessGroup.from_torchrun(os.environ, options.device)
            checkpoint = train_with_progress(options, out, resume=resume, workers=workers)
    finally:
        workers.close()
    if not workers.is_first:
        return
    if checkpoint is None:
        changes = [word for change in set_ or () for word in ("--set", change)]
        words = ["supernet", "train", "--config", str(config), *changes, "--out", str(out)]
        raise stopped([*words, "--resume"])
    plain_console().print(table_of(checkpoint))
    if failure := checkpoint.provenance.get("collapsed"):
        warn(failure)
    typer.echo(f"checkpoint: {out}", err=True)
