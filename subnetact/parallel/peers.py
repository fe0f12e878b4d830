"""`Peers`: what one worker exchanges with the others, over `torch.distributed`.

Workers of one machine meet in a file. Over gloo they talk on the loopback interface, so nothing
listens to the outside, and whatever goes wrong a worker leaves its group, which closes its
connections: those that wait for it fail as well instead of waiting on. Over NCCL who waits for a
worker that is gone can't be told; the executor replaces those too.

Gloo sends what lies in the host's memory, so on CUDA it takes a copy there and one back.
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

_NEVER = timedelta(hours=1)
"""An exchange may take as long as a neighbour computes: the executor ends one that hangs."""


class Peers:
    """The groups of one worker: its stage's shards, and its neighbours in the row of stages."""

    def __init__(
        self, grid: WorkerGrid, rank: int, *, backend: str = "gloo", device: torch.device
    ) -> None:
        """Know no group yet; `backend` and `device` are as `worker_device.py` has them."""
        self._grid, self._rank = grid, rank
        self._backend, self._device = backend, device
        self._wire = device if backend == "nccl" else torch.device("cpu")
        self._stage: Any = None
        self._under_way: list[tuple[Any, torch.Tensor]] = []

    def join(self, path: str, within_s: float) -> None:
        """Form the groups with all other workers. Raises RuntimeError when one does not come."""
        self.leave()
        if sys.platform == "linux" and self._backend == "gloo":
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        grid = self._grid
        store = FileStore(path, len(grid))
        store.set_timeout(timedelta(seconds=within_s))
        dist.init_process_group(
            self._backend, store=store, rank=self._rank, world_size=len(grid), timeout=_NEVER
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
        sent = part.to(self._wire)
        parts = sent.new_empty(self._grid.shards, *part.shape)
        dist.all_gather(list(parts.unbind(0)), sent, group=self._stage)
        return parts.to(self._device)

    def pass_on(self, x: torch.Tensor) -> None:
        """Send to the same shard of the next stage, without waiting."""
        sent = x.to(self._wire)
        work = dist.isend(sent, self._rank + self._grid.shards)
        self._under_way.append((work, sent))  # which must live until it has left

    def take_over(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Receive from the same shard of the stage before."""
        x = torch.empty(shape, device=self._wire)
        dist.recv(x, self._rank - self._grid.shards)
        return x.to(self._device)

    def finish(self) -> None:
        """Wait until all that was passed on has left."""
        for work, _ in self._under_way:
            work.wait()
        self._under_way.clear()
