"""The split of a run that goes on from a checkpoint of ours: the checkpoint's own.

Drawn anew, most of what the new run would hold out had been trained on by the old one, and its
validation accuracies would be those of memory.
"""

from __future__ import annotations

from dataclasses import replace

from supernet import Checkpoint
from training.config import ConfigError, TrainConfig
from training.data.checkpoint_data import split_trained_on
from training.data.data import load_dataset
from training.data.samples import Dataset


def load_inheriting(config: TrainConfig, parent: Checkpoint | None) -> tuple[TrainConfig, Dataset]:
    """Load a run's data set; on the same data as `parent` was trained on, split as there.

    Returns the config with the `data.split_seed` that is used beside it. Raises ConfigError when
    the config asks for a split under which samples that the parent trained on are held out.
    """
    data = load_dataset(config.data, config.seed)
    theirs = split_trained_on(parent, data, config.data) if parent is not None else None
    if theirs is None:
        return config, data
    asked: list[tuple[str, float, float]] = []
    if config.data.split_seed >= 0:
        asked.append(("data.split_seed", config.data.split_seed, theirs.seed))
    if data.split is not None and data.split.validation == config.data.validation:
        asked.append(("data.validation", config.data.validation, theirs.validation))
    differing = [f"{key} is {mine:g}, expected {old:g}" for key, mine, old in asked if mine != old]
    if differing:
        raise ConfigError(
            f"the weights in {config.supernet.weights} were trained on these data with another "
            "split: samples that were trained on would be held out. "
            f"{'; '.join(differing)} (leave out data.split_seed to take theirs)"
        )
    inherited = replace(config, data=replace(config.data, split_seed=theirs.seed))
    return inherited, load_dataset(inherited.data)
