"""`Peers`: what one worker exchanges with the others, over `torch.distributed` and gloo.

Workers of one machine meet in a file and talk over the loopback interface, so nothing listens to
the outside. Whatever goes wrong, a worker leaves its group, which closes its connections: those
that wait for it fail as well instead of waiting on.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from subnetact.parallel.worker_grid import WorkerGrid

MEET_WITHIN = timedelta(seconds=10)
_NEVER = timedelta(hours=1)
"""An exchange may take as long as a neighbour computes: the executor ends one that hangs."""


class Peers:
    """The groups of one worker: its stage's shards, and its neighbours in the row of stages."""

    def __init__(self, grid: WorkerGrid, rank: int) -> None:
        """Know no group yet."""
        self._grid, self._rank = grid, rank
        self._stage: Any = None
        self._under_way: list[tuple[Any, torch.Tensor]] = []

    def join(self, path: str) -> None:
        """Form the groups with all other workers. Raises RuntimeError when one does not come."""
        self.leave()
        if sys.platform == "linux":
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        grid = self._grid
        store = FileStore(path, len(grid))
        store.set_timeout(MEET_WITHIN)
        dist.init_process_group(
            "gloo", store=store, rank=self._rank, world_size=len(grid), timeout=_NEVER
        )
        for stage in range(grid.stages):
            ranks = [grid.rank(stage, shard) for shard in range(grid.shards)]
            group = dist.new_group(ranks, timeout=_NEVER) if grid.shards > 1 else None
            if stage == grid.stage_of(self._rank):
                self._stage = group

    def leave(self) -> None:
        """Close what there is of groups; without one, nothing."""
        self._under_way.clear()
        self._stage = None
        if dist.is_initialized():
            dist.destroy_process_group()

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """Return the parts of all shards of this stage, (shards, *part.shape)."""
        parts = part.new_empty(self._grid.shards, *part.shape)
        dist.all_gather(list(parts.unbind(0)), part, group=self._stage)
        return parts

    def pass_on(self, x: torch.Tensor) -> None:
        """Send to the same shard of the next stage, without waiting."""
        work = dist.isend(x, self._rank + self._grid.shards)
        self._under_way.append((work, x))  # which must live until it has left

    def take_over(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Receive from the same shard of the stage before."""
        x = torch.empty(shape)
        dist.recv(x, self._rank - self._grid.shards)
        return x

    def finish(self) -> None:
        """Wait until all that was passed on has left."""
        for work, _ in self._under_way:
            work.wait()
        self._under_way.clear()
