"""`supernet bootstrap`: from a pretrained network to a supernet, in one command."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from safetensors import SafetensorError

from slackfit.output_files import check_outputs
from slackfit.user_errors import user_errors
from training.bootstrap.bootstrap import OtherProcessError, bootstrap
from training.bootstrap.journal import load_journal
from training.bootstrap.options import BootstrapOptions
from training.bootstrap.page import write_page
from training.bootstrap.start import PretrainedSource
from training.commands.shown_training import table_of, train_with_progress
from training.trainer.distributed import ProcessGroup
from training.trainer.resume import SaveError
from training.trainer.trainer import TrainingDivergedError

_INTERRUPTED = 130
_ORIGINS = ("timm", "torchvision", "ofa", "huggingface", "supernet")

console = Console(stderr=True)


def bootstrap_command(
    source: Annotated[
        str, typer.Argument(help="A model's name for timm and torchvision; else a file or folder.")
    ],
    origin: Annotated[str, typer.Option("--from", help=f"Whose naming: {', '.join(_ORIGINS)}.")],
    data: Annotated[
        Path, typer.Option(help="train/CLASS/* with val/ or test/, an array folder, or texts.csv.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint, the page and the state.")],
    minutes: Annotated[float, typer.Option(help="Wall time that all of it may take.")] = 90.0,
    resolution: Annotated[
        int, typer.Option(min=0, help="Side of the images in pixels; 0: the network's own.")
    ] = 0,
    weights: Annotated[
        Path | None,
        typer.Option(help="Your own file of the timm or torchvision network that SOURCE names."),
    ] = None,
    supernet: Annotated[
        str, typer.Option(help="Which named supernet, where the weights don't tell.")
    ] = "",
    batch_size: Annotated[int, typer.Option(help="Samples of a step.")] = 64,
    validation: Annotated[
        float, typer.Option(help="Share of the training samples to choose subnets and rate on.")
    ] = 0.1,
    recipe: Annotated[
        Path | None,
        typer.Option(help="TOML; default: as configs/bootstrap_cnn.toml or bootstrap_vit.toml."),
    ] = None,
    micro_batch_size: Annotated[
        int, typer.Option(help="Samples of one pass, where a step does not fit; 0: all of them.")
    ] = 0,
    activation_checkpointing: Annotated[
        bool,
        typer.Option(
            "--activation-checkpointing", help="Less memory for a third more computation."
        ),
    ] = False,
    alone: Annotated[
        bool, typer.Option("--alone", help="Train the whole network by itself, to compare with.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")] = "cpu",
    threads: Annotated[int, typer.Option(min=0, help="0: torch's default.")] = 0,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on with the bootstrap in --out.")] = False,
) -> None:
    """Make a supernet that is worth serving of a pretrained network, for your classes.

    Under torchrun the processes train together: `torchrun --nproc-per-node 2 -m serve bootstrap`.
    """
    problems = (
        *(ValueError, OSError, SafetensorError, SaveError),
        *(TrainingDivergedError, OtherProcessError),
    )
    workers = ProcessGroup()
    try:
        with user_errors(*problems):
            if origin not in _ORIGINS:
                raise ValueError(f"--from {origin}: allowed {', '.join(_ORIGINS)}")
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
            workers = ProcessGroup.from_torchrun(os.environ, device)
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
    if not workers.is_first:
        return
    command = shlex.join(["supernet", *sys.argv[1:]])
    if checkpoint is None:
        again = command if resume else f"{command} --resume"
        console.print(
            f"stopped; go on with: {again}", highlight=False, markup=False, soft_wrap=True
        )
        raise typer.Exit(_INTERRUPTED)
    with user_errors(OSError, ValueError):
        page = write_page(out, checkpoint, load_journal(out), command)
    Console().print(table_of(checkpoint))
    console.print(f"checkpoint: {out}, page: {page}", highlight=False, soft_wrap=True)


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
