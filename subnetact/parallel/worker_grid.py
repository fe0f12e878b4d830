"""`WorkerGrid`: stages of blocks times shards of keys and values, and which worker is which."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerGrid:
    """`stages` workers in a row hold blocks, `shards` beside each other keys and values.

    Worker `stage * shards + shard` holds a stage's blocks, and of their keys and values those
    positions of each stream that its shard owns. Raises ValueError for counts below 1.
    """

    shards: int = 1
    stages: int = 1

    def __post_init__(self) -> None:
        for name in ("shards", "stages"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed 1 or more")

    def __len__(self) -> int:
        return self.shards * self.stages

    def rank(self, stage: int, shard: int) -> int:
        """Return the number of a worker."""
        return stage * self.shards + shard

    def stage_of(self, rank: int) -> int:
        """Return the stage of a worker."""
        return rank // self.shards

    def shard_of(self, rank: int) -> int:
        """Return the shard of a worker."""
        return rank % self.shards

    def ranks_of(self, shards: frozenset[int]) -> list[int]:
        """Return the workers of some shards, in all stages."""
        return [rank for rank in range(len(self)) if self.shard_of(rank) in shards]

    def blocks(self, stage: int, depth: int) -> range:
        """Return the blocks of a stage, as equal as they come; later stages have the fewer.

        The last stage has the head besides. Raises ValueError for fewer blocks than stages.
        """
        if depth < self.stages:
            raise ValueError(f"{self.stages} stages for {depth} blocks; allowed 1 to {depth}")
        size, more = divmod(depth, self.stages)
        begin = stage * size + min(stage, more)
        return range(begin, begin + size + (stage < more))
