"""`ParallelExecutor`: iterations of one decoder over several worker processes.

To who calls it a decoder's executor like `StreamExecutor`: chunks of streams in, logits out, at the
width that is asked for. Behind it are shards of keys and values (a context that one worker can't
hold, read by several at once) and stages of blocks (chunks of a prompt in flight); see
`worker_grid.py`. An iteration whose streams all lie on one shard is run by that shard alone.

When a worker ends, streams that it held anything of are lost: whoever looks after the executor
(`look_after`), or runs them next (`WorkerFailedError`), is told so, and all others go on. The twin
is the plain network on the whole context.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from slackfit.streams.iteration_cost import IterationCosts
from slackfit.streams.iteration_fill import IterationFill
from subnetact.decoding.extents import CacheFullError, SequenceId
from subnetact.decoding.ragged_batch import Chunk, RaggedBatch
from subnetact.parallel.messages import FillSlots, Iterate, MicroBatch, WorkerSpec
from subnetact.parallel.micro_batches import cut, plan_batches
from subnetact.parallel.shard_table import EXTENT_TOKENS, ShardTable
from subnetact.parallel.worker_device import backend_for
from subnetact.parallel.worker_failure import WorkerFailedError
from subnetact.parallel.worker_grid import WorkerGrid
from subnetact.parallel.worker_pool import START_WITHIN_S, SURVIVORS_WITHIN_S, WorkerPool
from subnetact.parallel.worker_recovery import WorkerRecovery
from supernet.checkpoint import Checkpoint, save_checkpoint

MICRO_TOKENS = 256
HUNG_AFTER_S = 60.0
_HUNG_FACTOR = 20.0  # times the predicted time: less than a server waits for all of us


class ParallelExecutor:
    """Runs iterations on a grid of workers; used by one thread."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        grid: WorkerGrid,
        *,
        folder: str | Path | None = None,
        capacity_tokens: int = 4096,
        block_tokens: int = 64,
        extent_tokens: int = EXTENT_TOKENS,
        spread_from: int = 0,
        micro_tokens: int = MICRO_TOKENS,
        threads: int | None = 1,
        subnet_ids: Iterable[str] | None = None,
        packing: str = "views",
        device: str = "cpu",
        hung_after_s: float = HUNG_AFTER_S,
        costs: IterationCosts | None = None,
    ) -> None:
        """Start the workers and wait until they have met.

        `folder` is where the checkpoint lies; None: it is written to a temporary one, which workers
        read. `capacity_tokens` is what each shard keeps. A stream of less than `spread_from` tokens
        (a profile's break-even context) stays on one shard. With several stages an iteration is cut
        into micro-batches of `micro_tokens` at the most. On `device` cuda workers take devices in
        turn, with packing views alone. A worker that does not answer for `hung_after_s`, or 20
        times what `costs` predict of the iteration, is replaced. All iterations between two calls
        of `look_after` together wait no longer for workers that are being replaced. Raises
        ValueError for a checkpoint of no decoder or of one with sliding windows, a grid that it has
        too few blocks for, sizes or a device that can't be; WorkerFailedError where workers don't
        start.
        """
        if micro_tokens < 1:
            raise ValueError(f"micro_tokens is {micro_tokens}, allowed 1 or more")
        self._config = _decoder_config(checkpoint)
        grid.blocks(0, self._config.depth)
        self.subnet_ids = checkpoint.subnet_ids if subnet_ids is None else tuple(subnet_ids)
        for subnet_id in self.subnet_ids:
            checkpoint.subnet(subnet_id)
        self.grid, self.threads, self.packing = grid, threads, packing
        self.micro_tokens = micro_tokens
        self.table = ShardTable(
            grid.shards, capacity_tokens, block_tokens=block_tokens, extent_tokens=extent_tokens,
            spread_from=spread_from,
        )  # fmt: skip
        self.backend = _backend(device, packing, grid)
        self._hung_after_s, self._costs = hung_after_s, costs
        self._temporary = TemporaryDirectory(prefix="supernet-workers-")
        place = Path(self._temporary.name)
        if folder is None:
            folder = place / "checkpoint"
            save_checkpoint(checkpoint, folder)
        first = WorkerSpec(
            str(folder), grid, 0, capacity_tokens, block_tokens, threads, packing,
            self.subnet_ids, device, self.backend, str(place),
        )  # fmt: skip
        self._pool = WorkerPool([first._replace(rank=rank) for rank in range(len(grid))], place)
        self._recovery = WorkerRecovery(self._pool, self.table, grid, hung_after_s)
        try:
            self._recovery.meet_first()
        except BaseException:
            self.close()
            raise

    @classmethod
    def for_costs(
        cls, checkpoint: Checkpoint, costs: IterationCosts, **settings: Any
    ) -> ParallelExecutor:
        """Start the grid that costs were measured on: streams are spread from their break-even.

        `settings` are further arguments of the constructor. Raises ValueError for costs of one
        worker, and what the constructor raises.
        """
        parallel = costs.parallel
        if parallel is None:
            raise ValueError(
                "these costs are of one worker; measure a grid with `supernet profile --shards N`"
            )
        return cls(
            checkpoint,
            WorkerGrid(parallel.shards, parallel.stages),
            spread_from=parallel.break_even_tokens,
            micro_tokens=parallel.micro_tokens,
            subnet_ids=costs.subnet_ids,
            costs=costs,
            **settings,
        )

    @property
    def max_positions(self) -> int:
        """The longest context, in tokens."""
        return self._config.max_positions

    @property
    def process_ids(self) -> list[int]:
        """Of the workers, by rank."""
        return self._pool.process_ids

    @property
    def is_whole(self) -> bool:
        """Whether all workers were there the last time that anything was run."""
        return self._pool.is_joined

    def missing_tokens(self, chunks: Sequence[Chunk]) -> int:
        """How many free tokens (whole blocks) of the cache an iteration takes."""
        return sum(self.table.missing_tokens(chunk.sequence, len(chunk.ids)) for chunk in chunks)

    def run(self, subnet_id: str, chunks: Sequence[Chunk]) -> np.ndarray:
        """Run one iteration; return logits (S, vocabulary) of the chunks that sample, in order.

        Raises WorkerFailedError when a worker is or goes missing that it needs, RuntimeError when
        one fails, CacheFullError when there is no room, ValueError for chunks that can't be
        (`RaggedBatch.of`), KeyError for a subnet that is not runnable. Nothing of the iteration is
        kept then.
        """
        if subnet_id not in self.subnet_ids:
            raise KeyError(subnet_id)
        recovery = self._recovery
        recovery.notice()
        self._check(chunks)
        expected_s = self._expected_s(subnet_id, chunks)
        recovery.waits.extend(_HUNG_FACTOR * expected_s)
        batches = cut(chunks, self.micro_tokens if self.grid.stages > 1 else None)
        planned, placed = plan_batches(self.table, batches)
        shards = self._shards_of(planned)
        try:
            if not self._pool.is_joined and len(self._ranks_of(shards)) > 1:
                recovery.join_in_time()
                # Who went in that wait has taken along what it held, and room that was made there.
                recovery.refuse_lost(chunks)
                planned, placed = plan_batches(self.table, batches)
                shards = self._shards_of(planned)
            logits = self._ask(subnet_id, planned, shards, expected_s)
        except WorkerFailedError:
            recovery.give_up_lost()
            raise
        for sequence, spans in placed.items():
            self.table.commit(sequence, spans)
        return logits

    def share(self, source: SequenceId, sequence: SequenceId, tokens: int) -> None:
        """Begin a stream with the first `tokens` of another one, without computing them.

        Of one that is lost it is lost as well. Raises ValueError unless these are whole blocks.
        """
        if self._recovery.is_lost(source):
            self._recovery.lose(sequence)
        else:
            self.table.share(source, sequence, tokens)

    def release(self, sequence: SequenceId) -> None:
        """Forget a stream: it has ended, was aborted, or will be computed again."""
        self._recovery.forget(sequence)
        self.table.release(sequence)

    def look_after(self) -> tuple[SequenceId, ...]:
        """See to the workers, between iterations and while there are none; return who is lost.

        Those that have ended are replaced, those that were replaced are used again when they have
        their weights. Each stream that is lost is returned once. While nobody is left to run
        anything it waits, unless there is somebody to tell. Raises WorkersLostError when workers
        can't be had any more.
        """
        return self._recovery.look_after()

    def wait_until_whole(self) -> bool:
        """Wait for workers that are being replaced; return whether there were any.

        Where an iteration found no room there may be some then. Raises as `look_after`, and
        WorkerFailedError when it takes too long, or there is no time left to wait in.
        """
        if self._pool.is_joined:
            return False
        self._recovery.join_in_time()
        return True

    def occupy(self, sequence: SequenceId, tokens: int) -> None:
        """Let a stream hold `tokens` random keys and values, to measure what reading them costs.

        Raises CacheFullError as `run`.
        """
        self._recovery.notice()
        self._recovery.join(START_WITHIN_S)
        spans = self.table.place(sequence, tokens)
        reads = self.table.reads(sequence, (), spans)
        orders = {
            rank: FillSlots(tuple(f.run for f in reads[self.grid.shard_of(rank)].fresh), rank)
            for rank in range(len(self.grid))
        }
        self._pool.ask(orders, self._hung_after_s)
        self.table.commit(sequence, spans)

    def close(self) -> None:
        """End the workers."""
        self._pool.close()
        self._temporary.cleanup()

    def _check(self, chunks: Sequence[Chunk]) -> None:
        self._recovery.refuse_lost(chunks)
        RaggedBatch.of(
            chunks,
            [self.table.length(chunk.sequence) for chunk in chunks],
            vocab_size=self._config.vocab_size,
            max_positions=self._config.max_positions,
        )
        if not self.table.capacity_tokens:  # no shard has all of its stages
            self._recovery.join_in_time()
        missing = self.missing_tokens(chunks)
        if missing > self.table.free_tokens:
            raise CacheFullError(
                f"the iteration needs {missing} more tokens of cache, {self.table.free_tokens} of "
                f"{self.table.capacity_tokens} are free"
            )

    @staticmethod
    def _shards_of(planned: list[list[MicroBatch]]) -> frozenset[int]:
        """The shards that an iteration reads or writes."""
        return frozenset(
            shard
            for shard, batches in enumerate(planned)
            if any(c.reads.past or c.reads.fresh for batch in batches for c in batch.chunks)
        )

    def _ranks_of(self, shards: frozenset[int]) -> list[int]:
        """The workers of the only shard that holds anything; all where they are several."""
        return self.grid.ranks_of(shards) if len(shards) == 1 else list(range(len(self.grid)))

    def _expected_s(self, subnet_id: str, chunks: Sequence[Chunk]) -> float:
        """What an iteration is predicted to take; 0 without costs."""
        if self._costs is None:
            return 0.0
        fill = IterationFill(self._costs.rung(subnet_id))
        for chunk in chunks:
            fill.add(self.table.length(chunk.sequence), len(chunk.ids), chunk.samples)
        return fill.seconds

    def _ask(
        self,
        subnet_id: str,
        planned: list[list[MicroBatch]],
        shards: frozenset[int],
        expected_s: float,
    ) -> np.ndarray:
        """Have the shards that hold anything run it, or all of a stage where they are several."""
        alone, ranks = len(shards) == 1, self._ranks_of(shards)
        orders = {
            rank: Iterate(subnet_id, tuple(planned[self.grid.shard_of(rank)]), alone)
            for rank in ranks
        }
        answers = self._pool.ask(
            orders,
            max(self._hung_after_s, _HUNG_FACTOR * expected_s),
            max(SURVIVORS_WITHIN_S, expected_s),  # until they come to the next exchange
        )
        pieces = [answers[rank].logits for rank in ranks]
        found = [logits for logits in pieces if logits is not None]
        return found[0] if len(found) == 1 else np.concatenate(found, 1)


def _backend(device: str, packing: str, grid: WorkerGrid) -> str:
    """Return what the workers exchange over. Raises ValueError for what can't run on a device."""
    backend = backend_for(device, len(grid))
    if device != "cpu" and packing != "views":
        raise ValueError(f"packing is {packing!r}, on {device} allowed views")
    return backend


def _decoder_config(checkpoint: Checkpoint) -> Any:
    """Return a decoder's configuration. Raises ValueError where workers can't share it out."""
    definition = checkpoint.definition
    if not definition.family.generates:
        raise ValueError(
            f"{checkpoint.name} is a {definition.family_name}, which makes no text; "
            "a decoder is needed (docs/decoder.md)"
        )
    config: Any = definition.config
    if any(config.windows):
        raise ValueError(
            f"{checkpoint.name} has sliding windows, which several workers don't share out; "
            "run it in one process"
        )
    return config
