"""Data-parallel training: local accumulation over all subnets, then one all-reduce per step.

No hooks on the backward passes: with several passes per step and a graph that changes with the
subnet, hooks either reduce several times or silently leave gradients rank-local. Here every worker
draws the same subnets (samplers are keyed by the step), adds the gradients of all passes up
locally, and one collective averages them, flattened; a gradient that a worker lacks counts as zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from subnetact.device import device_name

# The others wait in a collective while the first evaluates: hours for a large data set on a slow
# disk, where the backends' own 10 and 30 minutes would end the run.
_PATIENCE = timedelta(hours=6)


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """This process among those that train together; `alone` needs no process group."""

    rank: int = 0
    size: int = 1

    @classmethod
    def from_torchrun(cls, environment: Mapping[str, str], device: str) -> ProcessGroup:
        """Join the process group that torchrun has prepared; alone without torchrun.

        gloo on a CPU, NCCL on CUDA, where each process takes the GPU of its local rank. The caller
        leaves with `close`. Raises ValueError where there is no CUDA, or one GPU is named for all.
        """
        if "RANK" not in environment or "WORLD_SIZE" not in environment:
            return cls()
        if not device.startswith("cuda"):
            dist.init_process_group("gloo", timeout=_PATIENCE)
        else:
            if device != "cuda":
                raise ValueError(f"device is {device!r}, allowed under torchrun: cpu, cuda")
            device_name(device)
            local = torch.device("cuda", int(environment.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(local)  # "cuda" means this one from now on
            dist.init_process_group("nccl", device_id=local, timeout=_PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this worker writes files and shows progress."""
        return self.rank == 0

    @property
    def part(self) -> slice:
        """This worker's rows of a batch: every size-th from its rank on."""
        return slice(self.rank, None, self.size)

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its mean over the workers, in one collective."""
        if self.size == 1:
            return
        known = list(parameters)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in known]
        self.average(gradients)
        for parameter, gradient in zip(known, gradients, strict=True):
            parameter.grad = gradient

    @torch.no_grad()
    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors of one device by their means over the workers, in one collective."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))

    def mean(self, value: float) -> float:
        """The mean of a number over the workers; all get the same."""
        if self.size == 1:
            return value
        numbers = torch.tensor([value], dtype=torch.float64)
        numbers = numbers.cuda() if dist.get_backend() == "nccl" else numbers
        self.average([numbers])
        return float(numbers)

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
