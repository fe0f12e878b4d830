"""Logits of a grid of workers against the plain network in double precision, any schedule."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from serve.bench.decoder.bench import random_checkpoint
from serve.bench.rows import Row, row
from subnetact.decoding.ragged_batch import Chunk
from subnetact.parallel.parallel_executor import ParallelExecutor
from subnetact.parallel.worker_grid import WorkerGrid
from supernet.checkpoint import Checkpoint
from supernet.definition import define_supernet
from supernet.families.decoder import DecoderConfig
from supernet.subnets.extract import extract

GRIDS = (WorkerGrid(shards=2), WorkerGrid(shards=3), WorkerGrid(stages=2), WorkerGrid(2, 2))
_BLOCK, _KEPT, _LONGEST, _MICRO = 4, 1024, 200, 24


def exact_rows(device: str, grids: Sequence[WorkerGrid] = GRIDS, num_texts: int = 8) -> list[Row]:
    """Return each grid's largest error, of the largest logit, over texts in random chunks."""
    checkpoint = random_checkpoint(define_supernet("decoder_tiny", max_positions=256))
    rows: list[Row] = []
    for grid in grids:
        executor = ParallelExecutor(
            checkpoint,
            grid,
            capacity_tokens=_KEPT,
            block_tokens=_BLOCK,
            extent_tokens=_BLOCK,
            micro_tokens=_MICRO,
            device=device,
        )
        try:
            errors = [_error(executor, checkpoint, seed) for seed in range(num_texts)]
        finally:
            executor.close()
        rows.append(
            row(
                f"long-context/exact/kvp{grid.shards}_spp{grid.stages}",
                max(errors) * 1e6,
                "1e-6",
                f"{num_texts} texts of {_LONGEST} tokens in random chunks, contexts and spreading "
                f"on {device} over {executor.backend}; the largest error, of the largest logit, "
                "against the network in double precision on the CPU; bar 1",
            )
        )
    return rows


def _error(executor: ParallelExecutor, checkpoint: Checkpoint, seed: int) -> float:
    """Run a text in chunks of any size, on shards from any context on; return its largest error."""
    draw = random.Random(seed)
    config = checkpoint.definition.config
    assert isinstance(config, DecoderConfig), "a decoder's"
    ids = [draw.randrange(config.vocab_size) for _ in range(_LONGEST)]
    width = draw.choice(executor.subnet_ids)
    found: dict[int, torch.Tensor] = {}
    done = 0
    while done < len(ids):
        executor.table.spread_from = draw.choice((0, 24, 100))
        size = draw.choice((1, draw.randint(1, len(ids) - done)))
        logits = executor.run(width, [Chunk(seed, tuple(ids[done : done + size]))])
        done += size
        found[done - 1] = torch.from_numpy(logits[0])
    executor.release(seed)
    subnet = extract(checkpoint.state, checkpoint.definition, checkpoint.subnet(width).arch)
    with torch.inference_mode():
        expected = subnet.double()(torch.tensor([ids]))[0]
    scale = expected.abs().max()
    return max(((found[i] - expected[i]).abs().max() / scale).item() for i in found)
