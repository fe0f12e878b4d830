"""`EagerExecutor`: one resident supernet and an `Actuator`, run eagerly on a CPU or CUDA device.

The plain twin of every faster executor, and what runs where nothing else can.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import torch

from subnetact.device import device_name, synchronize
from subnetact.executor import NO_CACHE, HostLaunched, StagingExecutor, check_batch, warm_up
from subnetact.ieee_float32 import ieee_float32
from subnetact.threads import ThreadCount
from subnetact.views.actuator import Actuator
from supernet.checkpoint import Checkpoint


class EagerExecutor(StagingExecutor):
    """Runs batches eagerly on one resident supernet; actuation is a number per thread."""

    packing = "views"
    dtype = "float32"
    details = ""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "cpu",
        threads: int | None = 1,
        max_batch_size: int = 16,
        subnet_ids: Iterable[str] | None = None,
    ):
        """Place the supernet on `device` and register the subnets (default: all served ones).

        `threads` is the number of intra-op CPU threads of the thread that runs batches (None:
        torch's default). Raises CheckpointError for a subnet that the checkpoint does not serve,
        ValueError for a number below one or a device that is not there.
        """
        for name, value in (("threads", threads), ("max_batch_size", max_batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, allowed 1 or more")
        device_name(device)  # refuses a device that is not there, before anything is loaded on it
        self.device = device
        self.threads = threads if torch.device(device).type == "cpu" else None
        self.max_batch_size = max_batch_size
        self.sample = checkpoint.sample
        self.num_classes = checkpoint.num_classes
        self._input = checkpoint.input
        self._thread_count = ThreadCount(self.threads)
        is_cuda = torch.device(device).type == "cuda"
        self._exactly = ieee_float32 if is_cuda else nullcontext[None]
        net = checkpoint.definition.on_meta()
        net.load_state_dict(dict(checkpoint.state), strict=True, assign=True)
        self._net = net.to(device).to(memory_format=torch.channels_last).requires_grad_(False)
        self.actuator = Actuator(self._net, checkpoint.definition)
        wanted = checkpoint.subnet_ids if subnet_ids is None else tuple(subnet_ids)
        for subnet_id in wanted:
            arch = checkpoint.subnet(subnet_id).arch
            self.actuator.register(arch, checkpoint.norm_statistics[subnet_id])

    @property
    def subnet_ids(self) -> tuple[str, ...]:
        """Ids of the subnets that can be run."""
        return self.actuator.subnet_ids

    @torch.inference_mode()
    def launch(self, subnet_id: str, slots: Sequence[np.ndarray]) -> HostLaunched:
        """See `Executor`: run the batch and return its logits, on the host."""
        samples = self.sample.stacked(slots)
        check_batch(len(samples), self.max_batch_size)
        self._thread_count.use()
        arch = self.actuator.actuate(subnet_id)
        x = self._input.as_served(torch.from_numpy(samples).to(self.device), arch.resolution)
        with self._exactly():
            return HostLaunched(self._net(x).float().cpu().numpy(), "views")

    def result(self, launched: HostLaunched) -> np.ndarray:
        """See `Executor`."""
        return launched.logits

    def warm_up(self) -> None:
        """Run every subnet at the largest and the smallest batch size."""
        warm_up(self)
        synchronize(self.device)

    def counts(self) -> Mapping[str, int]:
        """See `Executor`: nothing is held besides the weights."""
        return NO_CACHE

    def close(self) -> None:
        """Nothing is held beyond the tensors themselves."""
