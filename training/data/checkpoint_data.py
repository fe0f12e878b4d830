"""The data set that a trained or imported checkpoint is measured on.

Samples are normalised as the checkpoint's own input says, whatever the data's mean is: that is
what its weights expect and what the server does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from supernet import Checkpoint
from training.config import DataConfig
from training.data.array_folder import DataError
from training.data.data import load_dataset
from training.data.samples import Dataset


def dataset_of(
    checkpoint: Checkpoint, path: Path | None = None, validation: float = 0.5
) -> Dataset:
    """Load the folder at `path`, or the data that the checkpoint was trained on, split alike.

    `validation` is the share of a given folder's training images that is held out. Raises
    DataError when neither is there, or channels or classes differ from the checkpoint's.
    """
    if path is not None:
        data = load_dataset(DataConfig(name=kind_of(path), path=str(path), validation=validation))
    else:
        recorded: dict[str, Any] = checkpoint.provenance.get("config", {})
        if "data" not in recorded:
            raise DataError(
                f"checkpoint {checkpoint.name!r} does not say what it was trained on; pass --data"
            )
        data = load_dataset(DataConfig(**recorded["data"]), recorded.get("seed", 0))
    _check_fits(checkpoint, data)
    return replace(data, input=checkpoint.input)


def kind_of(path: Path) -> Any:
    """`folder` for an array folder, `images` for one with a folder per class. Raises DataError."""
    if (path / "classes.json").exists():
        return "folder"
    if (path / "train").is_dir():
        return "images"
    raise DataError(
        f"{path}: expected an array folder (classes.json, train/, test/; see python -m "
        "training.convert) or train/CLASS/*.jpg with val/ or test/ beside it"
    )


def _check_fits(checkpoint: Checkpoint, data: Dataset) -> None:
    if len(data.classes) != checkpoint.num_classes:
        raise DataError(
            f"checkpoint {checkpoint.name!r} has {checkpoint.num_classes} classes, {data.name} has "
            f"{len(data.classes)}; they must be the same classes in the same order"
        )
    theirs, ours = data.input, checkpoint.input
    if (theirs.kind, theirs.channels) != (ours.kind, ours.channels):
        raise DataError(
            f"checkpoint {checkpoint.name!r} takes {ours.kind} of {ours.channels} channels, "
            f"{data.name} holds {theirs.kind} of {theirs.channels}"
        )
