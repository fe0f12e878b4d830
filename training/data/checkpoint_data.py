"""The data set that a trained or imported checkpoint is measured on.

Samples are normalised as the checkpoint's own input says, whatever the data's mean is: that is
what its weights expect and what the server does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from supernet import Checkpoint
from training.config import DataConfig
from training.data.array_folder import DataError
from training.data.checkpoint_texts import texts_of
from training.data.data import load_dataset
from training.data.samples import Dataset, SplitRecord

ChooseOn = Literal["validation", "test"]


def dataset_of(
    checkpoint: Checkpoint,
    path: Path | None = None,
    *,
    validation: float = 0.5,
    choose_on: ChooseOn = "validation",
) -> Dataset:
    """Load the folder at `path`, or the data that the checkpoint was trained on.

    Of a decoder it is running text (`texts_of`). Data that it was trained on are split as they were
    then, wherever they lie now; of others
    `validation` is the share of the training images that is held out. `choose_on` `test` holds out
    half of the test images instead (`Dataset.choosing_on_test`). Raises DataError when there are
    none, or channels or classes differ from the checkpoint's.
    """
    if checkpoint.definition.family.generates:
        texts = texts_of(checkpoint, path)
        return texts.choosing_on_test() if choose_on == "test" else texts
    if path is not None:
        options = DataConfig(name=kind_of(path), path=str(path), validation=validation)
        data = load_dataset(options)
        theirs = split_trained_on(checkpoint, data, options)
        if theirs is not None:
            options = replace(options, validation=theirs.validation, split_seed=theirs.seed)
            data = load_dataset(options)
    else:
        recorded: dict[str, Any] = checkpoint.provenance.get("config", {})
        if "data" not in recorded:
            raise DataError(
                f"checkpoint {checkpoint.name!r} does not say what it was trained on; pass --data"
            )
        data = load_dataset(DataConfig(**recorded["data"]), recorded.get("seed", 0))
    _check_fits(checkpoint, data)
    data = data.read_for(checkpoint.input)
    return data.choosing_on_test() if choose_on == "test" else data


def split_trained_on(
    checkpoint: Checkpoint, data: Dataset, options: DataConfig
) -> SplitRecord | None:
    """How `data`, loaded by `options`, were split when the checkpoint was trained on them.

    None where it was trained on others, or doesn't say. A checkpoint from before splits were kept
    has its config: data of the same name at the same path are taken to be the same.
    """
    recorded = checkpoint.provenance.get("split")
    if recorded:
        split = SplitRecord.from_json(recorded)
        return split if data.split is not None and split.digest == data.split.digest else None
    config: dict[str, Any] = checkpoint.provenance.get("config", {})
    old: dict[str, Any] = config.get("data", {})
    if (old.get("name"), old.get("path", "")) != (options.name, options.path):
        return None
    known = DataConfig(**old)
    seed = config.get("seed", 0) if known.split_seed < 0 else known.split_seed
    return SplitRecord(seed=seed, validation=known.validation, digest="")


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
    has_classes = checkpoint.definition.output.kind == "logits"
    if has_classes and len(data.classes) != checkpoint.num_classes:
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
