"""`Executor`: runs one batch on one subnet, on a CPU or a CUDA device, eagerly.

The contract that the server drives is the `Executor` protocol; `EagerExecutor` fulfils it with a
resident supernet and an `Actuator`. It decides nothing: which subnet and which samples is the
scheduler's business.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from subnetact.actuator import Actuator
from subnetact.device import device_name, synchronize
from supernet.checkpoint import Checkpoint, load_checkpoint


class Executor(Protocol):
    """What a server needs of a device."""

    @property
    def device(self) -> str: ...

    @property
    def threads(self) -> int | None: ...

    @property
    def input_shape(self) -> tuple[int, int, int]: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def subnet_ids(self) -> tuple[str, ...]: ...

    @property
    def max_batch_size(self) -> int: ...

    def run(self, subnet_id: str, inputs: np.ndarray) -> np.ndarray:
        """Run (B, C, H, W) uint8 samples on a subnet, return (B, num_classes) float32 logits."""
        ...

    def warm_up(self) -> None:
        """Run every subnet once or more, so that the first query is as fast as the others."""
        ...

    def close(self) -> None:
        """Release the device."""
        ...


class EagerExecutor:
    """Runs batches eagerly on one resident supernet; actuation is a number per thread."""

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
        self.input_shape = checkpoint.input_shape
        self.num_classes = checkpoint.num_classes
        self._input = checkpoint.input
        self._threads_set = threading.local()
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
    def run(self, subnet_id: str, inputs: np.ndarray) -> np.ndarray:
        """Run (B, C, H, W) uint8 samples on a subnet, return (B, num_classes) float32 logits.

        Blocks until the result is on the host. Raises KeyError for an unknown subnet, ValueError
        for inputs of another shape or type.
        """
        if inputs.dtype != np.uint8 or inputs.ndim != 4 or inputs.shape[1:] != self.input_shape:
            raise ValueError(
                f"inputs are {inputs.dtype} {inputs.shape}, expected uint8 (B, "
                f"{', '.join(map(str, self.input_shape))})"
            )
        self._use_threads()
        arch = self.actuator.actuate(subnet_id)
        samples = torch.from_numpy(inputs).to(self.device)
        x = self._input.normalise(samples, arch.resolution)
        logits = self._net(x.contiguous(memory_format=torch.channels_last))
        return logits.float().cpu().numpy()

    def warm_up(self) -> None:
        """Run every subnet at the smallest and the largest batch size."""
        for batch_size in (self.max_batch_size, 1):
            inputs = np.zeros((batch_size, *self.input_shape), dtype=np.uint8)
            for subnet_id in self.subnet_ids:
                self.run(subnet_id, inputs)
        synchronize(self.device)

    def close(self) -> None:
        """Nothing is held beyond the tensors themselves."""

    def _use_threads(self) -> None:
        """Set the thread count once per calling thread: torch keeps it per thread."""
        if self.threads is not None and not getattr(self._threads_set, "done", False):
            torch.set_num_threads(self.threads)
            self._threads_set.done = True


def load_executor(
    checkpoint: Checkpoint | str | Path,
    *,
    device: str = "cpu",
    threads: int | None = 1,
    max_batch_size: int = 16,
    subnet_ids: Iterable[str] | None = None,
) -> EagerExecutor:
    """Load a checkpoint folder (or take a loaded one) and make its subnets runnable.

    Raises CheckpointError when the folder or a subnet id is not what it should be.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_checkpoint(checkpoint)
    return EagerExecutor(
        checkpoint,
        device=device,
        threads=threads,
        max_batch_size=max_batch_size,
        subnet_ids=subnet_ids,
    )
