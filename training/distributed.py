"""Data-parallel training: local accumulation over all subnets, then one all-reduce per step.

No hooks on the backward passes: with several passes per step and a graph that changes with the
subnet, hooks either reduce several times or silently leave gradients rank-local. Here every worker
draws the same subnets (samplers are keyed by the step), adds the gradients of all passes up
locally, and one collective averages them, flattened; a gradient that a worker lacks counts as zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from training.data import Split


@dataclass(frozen=True, slots=True)
class Workers:
    """This process among those that train together; `alone` needs no process group."""

    rank: int = 0
    size: int = 1

    @classmethod
    def from_torchrun(cls, environment: Mapping[str, str], device: str) -> Workers:
        """Join the process group that torchrun has prepared; alone without torchrun.

        gloo on a CPU, NCCL on CUDA. The caller leaves with `close`.
        """
        if "RANK" not in environment or "WORLD_SIZE" not in environment:
            return cls()
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this worker writes files and shows progress."""
        return self.rank == 0

    def share(self, batch: Split) -> Split:
        """This worker's part of a batch: every size-th row from its rank on."""
        if self.size == 1:
            return batch
        return Split(batch.images[self.rank :: self.size], batch.labels[self.rank :: self.size])

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its mean over the workers, in one collective."""
        if self.size == 1:
            return
        known = list(parameters)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in known]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for parameter, gradient, part in zip(
            known, gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            parameter.grad = gradient.copy_(part.view(gradient.shape))

    def any(self, flag: bool) -> bool:
        """Whether any worker says so; all get the same answer."""
        if self.size == 1:
            return flag
        votes = torch.tensor([int(flag)])
        if dist.get_backend() == "nccl":
            votes = votes.cuda()
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes.item())

    def close(self) -> None:
        """Leave the process group."""
        if self.size > 1:
            dist.destroy_process_group()
