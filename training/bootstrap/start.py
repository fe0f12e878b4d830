"""What a bootstrap starts from: a pretrained network, important channels first, a new head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from supernet import Checkpoint, SupernetDefinition, define_supernet, load_checkpoint
from supernet.subnets.activation_importance import activation_order
from supernet.subnets.sort import permute_channels
from supernet.weights.import_network import imported_checkpoint
from supernet.weights.import_weights import import_supernet
from training.config import DataConfig
from training.data.array_folder import DataError
from training.data.checkpoint_data import kind_of
from training.data.data import drawn_batches
from training.data.samples import Dataset, untrained_classes
from training.evaluation.evaluate import network_input

_ARE_SUPERNETS = ("ofa", "supernet")  # their channels have an order that was trained
_CALIBRATION_IMAGES, _BATCH_SIZE = 512, 64
_FEWEST = 16


class PretrainedSource(NamedTuple):
    """Which pretrained network: as `supernet import` takes it; `resolution` 0 is its own."""

    source: str
    origin: str
    supernet: str = ""
    weights: str = ""
    resolution: int = 0

    @property
    def name(self) -> str:
        """How its origin calls it."""
        is_name = self.origin in ("timm", "torchvision")
        return self.source if is_name else Path(self.source).name


def data_config(path: Path, source: PretrainedSource) -> DataConfig:
    """How to read what lies at `path`: an array folder, a folder per class, or a CSV of texts.

    Texts are cut by the vocabulary in the source's folder. Raises DataError for anything else.
    """
    if path.suffix == ".csv":
        return DataConfig(name="text", path=str(path), vocabulary=source.source, size=128)
    return DataConfig(
        name=kind_of(path),
        path=str(path),
        size=source.resolution or 224,
        augmentation="random_resized_crop" if kind_of(path) == "images" else "crop_flip",
    )


def import_start(source: PretrainedSource, data: Dataset) -> Checkpoint:
    """The source as a checkpoint for the classes of `data`, its important channels first.

    Importance is by activations on drawn training images; a network that is a supernet already
    keeps the order that it was trained with. Raises DataError for data that do not fit the network,
    WeightsError for weights that don't, ValueError for unknown names or a resolution that the
    family does not take.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a new classifier is drawn
        definition, state = import_supernet(
            source.source,
            origin=source.origin,
            supernet=_variant(source),
            weights=source.weights or None,
            new_head=True,
            **_overrides(source, len(data.classes)),
        )
    _check_fits(definition, data)
    order: dict[str, list[int]] | None = None
    start = imported_checkpoint(
        definition, state, name=source.name, origin=source.origin, sort=False
    )
    trained = load_checkpoint(source.source) if source.origin == "supernet" else start
    expected = replace(trained.input, height=data.input.height, width=data.input.width)
    if source.origin not in _ARE_SUPERNETS:
        net = definition.build()
        net.load_state_dict(dict(state))
        groups = definition.family.channel_groups(definition.config)
        order = activation_order(net.eval(), groups, _inputs(replace(start, input=expected), data))
        permute_channels(state, groups, order)
        start = imported_checkpoint(
            definition, state, name=source.name, origin=source.origin, sort=False
        )
    return replace(start, classes=data.classes, input=expected, permutation=order)


def _variant(source: PretrainedSource) -> str | None:
    if source.origin == "supernet":
        return load_checkpoint(source.source).definition.family_name
    return source.supernet or None


def _overrides(source: PretrainedSource, num_classes: int) -> dict[str, Any]:
    """Config fields that differ from the variant's own."""
    values: dict[str, Any] = {"num_classes": num_classes}
    if source.origin == "supernet":
        values = asdict(load_checkpoint(source.source).definition.config) | values  # pyright: ignore[reportArgumentType]
    if not source.resolution or source.origin == "huggingface":
        return values
    name = _variant(source) or source.source.partition(".")[0]
    fields = define_supernet(name).config.__dataclass_fields__
    if "resolutions" in fields:
        return {**values, "resolutions": (source.resolution,)}
    if "resolution" in fields:
        return {**values, "resolution": source.resolution}
    raise ValueError(f"resolution {source.resolution}: {name} takes none but its own")


def _check_fits(definition: SupernetDefinition, data: Dataset) -> None:
    channels = definition.config.in_channels
    if data.input.channels != channels:
        raise DataError(
            f"{data.name} has images of {data.input.channels} channels, the network takes "
            f"{channels}: convert the images, or choose another network"
        )


def check_samples(data: Dataset) -> list[str]:
    """What a user should know of the data before training, a sentence each.

    Raises DataError for too few samples to train on, or a class without any.
    """
    if len(data.train) < _FEWEST:
        raise DataError(
            f"{data.name} has {len(data.train)} training samples besides those held out, at least "
            f"{_FEWEST} are needed"
        )
    if gone := untrained_classes(data):
        raise DataError(
            f"{data.name}: no sample of class {gone} is left to train on, as a part is "
            "held out to choose on; give each class at least two, better fifty"
        )
    held_out = torch.bincount(data.validation.labels, minlength=len(data.classes)).tolist()
    unseen = [name for name, count in zip(data.classes, held_out, strict=True) if not count]
    if not unseen:
        return []
    return [f"no sample of class {', '.join(unseen)} is held out: subnets are chosen without it"]


def _inputs(start: Checkpoint, data: Dataset) -> Iterator[torch.Tensor]:
    resolution = start.definition.space.largest.resolution
    read = data.read_for(start.input).train
    for batch in drawn_batches(read, _BATCH_SIZE, _CALIBRATION_IMAGES):
        yield network_input(batch.images, start.input, resolution)
