"""How many samples of a batch one pass sees: shared over processes, subnets and micro-batches."""

from __future__ import annotations

import itertools

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


def micro_batches(rows: slice, most: int) -> list[slice]:
    """Cut the rows of a pass into as few runs of at most `most` as there can be (0: one run).

    They differ by at most one row, so that none is left with next to nothing.

    >>> micro_batches(slice(10, 20), 4)
    [slice(10, 13, None), slice(13, 16, None), slice(16, 20, None)]
    """
    length = rows.stop - rows.start
    count = -(-length // most) if most else 1
    ends = [rows.start + i * length // count for i in range(count + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(ends)]


def few_samples(config: TrainConfig, definition: SupernetDefinition, num_processes: int) -> str:
    """Say where a pass sees too few samples for the BatchNorms of a network; else empty."""
    if not definition.buffer_shapes():
        return ""
    options, micro = config.schedule, config.data.micro_batch_size
    parts = options.parts if options.strategy in ("deps", "sandwich") else 1
    share = config.data.batch_size // num_processes // parts
    if 0 < micro < min(share, _FEWEST):
        return (
            f"a BatchNorm sees {micro} samples of a step at a time, as data.micro_batch_size says. "
            f"Below {_FEWEST} its statistics are noisy; set data.micro_batch_size={_FEWEST}, or "
            "activation_checkpointing=true instead"
        )
    if share >= _FEWEST or (parts == 1 and num_processes == 1):
        return ""
    way_out = [f"data.batch_size={_FEWEST * parts * num_processes}"]
    if parts > 1:
        way_out.insert(0, "schedule.parts=1")
    return (
        f"a smaller subnet's BatchNorm sees {share} samples a step: a batch of "
        f"{config.data.batch_size} over {num_processes} processes and {parts} parts. Below "
        f"{_FEWEST} its statistics are noisy; set {' or '.join(way_out)}"
    )
