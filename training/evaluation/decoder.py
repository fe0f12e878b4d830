"""Measuring a trained decoder: how far each width agrees with the largest, on held-out text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from supernet import Checkpoint, SupernetDefinition
from supernet.subnets.agreement import top1_agreement
from supernet.weights.import_decoder import decoder_checkpoint
from training.config import TrainConfig
from training.data.samples import Dataset, Samples
from training.evaluation.evaluate import watched_archs

_BATCH = 8  # windows at once: logits are (windows, tokens, vocabulary)
_REPORTED, _WATCHED = 64, 16  # windows


def check_decoder(definition: SupernetDefinition, data: Dataset, config: TrainConfig) -> None:
    """Raise ValueError unless running text meets a decoder that has its tokens and its windows."""
    if not definition.family.generates or data.text is None:
        raise ValueError(
            f"the supernet is a {definition.family_name}, the data {data.name}: decoders train on "
            "running text alone (data.name corpus), and nothing else does"
        )
    sizes: Any = definition.config
    highest = max(int(split.labels.max()) for split in (data.train, data.validation, data.test))
    if highest >= sizes.vocab_size:
        raise ValueError(
            f"the text has token {highest}, the supernet {sizes.vocab_size} tokens; "
            f"set supernet.overrides.vocab_size={highest + 1} or more"
        )
    if data.input.width != sizes.num_tokens:
        raise ValueError(
            f"data.size is {data.input.width}, expected the supernet's num_tokens "
            f"{sizes.num_tokens}; set either"
        )
    if config.loss.dropout or config.data.mixup or config.data.cutmix:
        raise ValueError("loss.dropout, data.mixup and data.cutmix are not for decoders; leave out")


def measured_decoder(trained: Checkpoint, data: Dataset) -> Checkpoint:
    """The checkpoint with every width of the ladder, measured on windows of the test split."""
    return decoder_checkpoint(
        trained.definition,
        dict(trained.state),
        reported_windows(data),
        name=trained.name,
        text=trained.text,
        permutation=trained.permutation,
        provenance=trained.provenance,
    )


def reported_windows(data: Dataset) -> list[torch.Tensor]:
    """The windows of the test split that qualities are measured on, (B, N) ids each."""
    return spread_windows(data.test, _REPORTED)


def choosing_windows(data: Dataset) -> list[torch.Tensor]:
    """The windows of the validation split that widths are chosen on, (B, N) ids each."""
    return spread_windows(data.validation, _REPORTED)


def watch_decoder(
    state: Mapping[str, torch.Tensor], definition: SupernetDefinition, data: Dataset
) -> dict[str, float]:
    """Perplexities on the validation split of the smallest, middle and largest subnet."""
    archs = watched_archs(definition.space)
    found = top1_agreement(state, definition, archs, spread_windows(data.validation, _WATCHED))
    return {f"perplexity/{i}": each.perplexity for i, each in found.items()}


def spread_windows(split: Samples, count: int) -> list[torch.Tensor]:
    """Return up to `count` windows spread over a split, (B, N) ids each."""
    rows = torch.linspace(0, len(split) - 1, min(count, len(split))).long()
    return [split.take(part).images.flatten(1).long() for part in rows.split(_BATCH)]
