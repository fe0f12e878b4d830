"""How many samples of a batch one pass sees, shared over processes and over subnets."""

from __future__ import annotations

from supernet.definition import SupernetDefinition
from training.config import TrainConfig

_FEWEST = 32  # samples that a BatchNorm's statistics should be taken from


def check_shares(batch_size: int, num_processes: int) -> None:
    """Raise ValueError unless every process gets as many samples of a batch as the others.

    Gradients are averaged over processes, so a sample of a smaller share would weigh more.
    """
    if batch_size % num_processes:
        raise ValueError(
            f"data.batch_size is {batch_size}, which {num_processes} processes can't share evenly; "
            f"allowed are multiples of {num_processes}"
        )


def few_samples(config: TrainConfig, definition: SupernetDefinition, num_processes: int) -> str:
    """Say where a pass sees too few samples for the BatchNorms of a network; else empty."""
    if not definition.buffer_shapes():
        return ""
    options = config.schedule
    parts = options.parts if options.strategy in ("deps", "sandwich") else 1
    share = config.data.batch_size // num_processes
    if share // parts >= _FEWEST or (parts == 1 and num_processes == 1):
        return ""
    way_out = [f"data.batch_size={_FEWEST * parts * num_processes}"]
    if parts > 1:
        way_out.insert(0, "schedule.parts=1")
    return (
        f"a smaller subnet's BatchNorm sees {share // parts} samples a step: a batch of "
        f"{config.data.batch_size} over {num_processes} processes and {parts} parts. Below "
        f"{_FEWEST} its statistics are noisy; set {' or '.join(way_out)}"
    )
