"""`Peers`: what one worker exchanges with the others, over memory that they share or a network.

Workers of one machine meet in a file, in groups of `torch.distributed`. Over gloo they talk on the
loopback interface, so nothing listens to the outside, and whatever goes wrong a worker leaves its
group, which closes its connections: those that wait for it fail as well instead of waiting on. Over
NCCL who waits for a worker that is gone can't be told; the executor replaces those too.

The shards of a stage, which exchange in every block, do so in shared memory where that is to be had
(`shared_exchange.py`); stages hand rows on over gloo. Both take what lies in the host's memory, so
on CUDA there is a copy there and one back.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from subnetact.parallel.shared_exchange import SharedExchange, share_memory
from subnetact.parallel.worker_device import MEMORY, NCCL
from subnetact.parallel.worker_grid import WorkerGrid

_NEVER = timedelta(hours=1)
"""An exchange may take as long as a neighbour computes: the executor ends one that hangs."""


class Peers:
    """The groups of one worker: its stage's shards, and its neighbours in the row of stages."""

    def __init__(self, grid: WorkerGrid, rank: int, *, backend: str, device: torch.device) -> None:
        """Know no group yet; `backend` and `device` are as `worker_device.py` has them."""
        self._grid, self._rank = grid, rank
        self._backend, self._device = backend, device
        self._wire = device if backend == NCCL else torch.device("cpu")
        self._stage: Any = None
        self._shared: SharedExchange | None = None
        self._under_way: list[tuple[Any, torch.Tensor]] = []

    @property
    def share_layers(self) -> bool:
        """Whether a gather is quick beside a layer, so that shards had better share those out."""
        return self._shared is not None

    def join(self, path: str, within_s: float) -> None:
        """Form the groups with all other workers. Raises RuntimeError when one does not come."""
        self.leave()
        grid, is_nccl = self._grid, self._backend == NCCL
        if sys.platform == "linux" and not is_nccl:
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        store = FileStore(path, len(grid))
        store.set_timeout(timedelta(seconds=within_s))
        dist.init_process_group(
            "nccl" if is_nccl else "gloo",
            store=store,
            rank=self._rank,
            world_size=len(grid),
            timeout=_NEVER,
        )
        for stage in range(grid.stages):
            ranks = [grid.rank(stage, shard) for shard in range(grid.shards)]
            group = dist.new_group(ranks, timeout=_NEVER) if grid.shards > 1 else None
            if stage == grid.stage_of(self._rank):
                self._stage = group
        if self._backend == MEMORY and grid.shards > 1:
            self._shared = share_memory(
                grid.shard_of(self._rank),
                grid.shards,
                self._tell,
                # Who watches has a core: where there is none for each, the others need it.
                is_watching=len(grid) * torch.get_num_threads() <= len(os.sched_getaffinity(0)),
            )

    def leave(self) -> None:
        """Close what there is of groups; without one, nothing."""
        if self._shared is not None:
            self._shared.leave()
        self._under_way.clear()
        self._stage = self._shared = None
        if dist.is_initialized():
            dist.destroy_process_group()

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """Return the parts of all shards of this stage, (shards, *part.shape).

        They are valid until the next gather.
        """
        sent = part.to(self._wire)
        if self._shared is not None:
            return self._shared.gather(sent).to(self._device)
        parts = sent.new_empty(self._grid.shards, *part.shape)
        dist.all_gather(list(parts.unbind(0)), sent.contiguous(), group=self._stage)
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

    def _tell(self, numbers: list[int]) -> list[list[int]]:
        """Tell numbers to the stage's other shards; return what each has told."""
        sent = torch.tensor(numbers, dtype=torch.long)
        told = [torch.empty_like(sent) for _ in range(self._grid.shards)]
        dist.all_gather(told, sent, group=self._stage)
        return [each.tolist() for each in told]
