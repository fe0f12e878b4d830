"""`Executor`: runs one batch on one subnet, on a CPU or a CUDA device, eagerly.

The contract that the server drives is the `Executor` protocol; `EagerExecutor` fulfils it with a
resident supernet and an `Actuator`. It decides nothing: which subnet and which samples is the
scheduler's business.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from subnetact.actuator import Actuator
from subnetact.device import device_name, synchronize
from subnetact.packing import is_available
from supernet.checkpoint import Checkpoint, load_checkpoint


class Executor(Protocol):
    """What a server needs of a device."""

    @property
    def device(self) -> str: ...

    @property
    def threads(self) -> int | None: ...

    @property
    def dtype(self) -> str:
        """What is computed in, `float32` for instance."""
        ...

    @property
    def details(self) -> str:
        """What a profile should say besides; may be empty."""
        ...

    @property
    def packing(self) -> str:
        """In which form weights are read: `views`, or what the profile should say instead."""
        ...

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

    def counts(self) -> Mapping[str, int]:
        """What the device did so far and holds now, by names fit for metrics; may be empty."""
        ...

    def close(self) -> None:
        """Release the device."""
        ...


class ThreadCount:
    """Sets torch's thread count once per calling thread: torch keeps it per thread."""

    def __init__(self, threads: int | None):
        self._threads = threads
        self._done = threading.local()

    def use(self) -> None:
        """Make the calling thread compute with this many threads (None: as torch likes)."""
        if self._threads is not None and not getattr(self._done, "done", False):
            torch.set_num_threads(self._threads)
            self._done.done = True


@contextmanager
def computing_with(threads: int | None) -> Iterator[None]:
    """Have the calling thread compute with this many threads for a while (None: as it does)."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_inputs(inputs: np.ndarray, shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless `inputs` are uint8 (B, *shape)."""
    if inputs.dtype != np.uint8 or inputs.ndim != 4 or inputs.shape[1:] != shape:
        raise ValueError(
            f"inputs are {inputs.dtype} {inputs.shape}, expected uint8 (B, "
            f"{', '.join(map(str, shape))})"
        )


class EagerExecutor:
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
        self.input_shape = checkpoint.input_shape
        self.num_classes = checkpoint.num_classes
        self._input = checkpoint.input
        self._thread_count = ThreadCount(self.threads)
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
        check_inputs(inputs, self.input_shape)
        self._thread_count.use()
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

    def counts(self) -> Mapping[str, int]:
        """See `Executor`: nothing is counted."""
        return {}

    def close(self) -> None:
        """Nothing is held beyond the tensors themselves."""


def mebibytes(number: float | None) -> int | None:
    """Return a limit in bytes; None, which is no limit, stays."""
    return None if number is None else int(number * 2**20)


PACKINGS = ("folded", "shared", "views")


def load_executor(
    checkpoint: Checkpoint | str | Path,
    *,
    device: str = "cpu",
    threads: int | None = 1,
    max_batch_size: int = 16,
    subnet_ids: Iterable[str] | None = None,
    packing: str | None = None,
    budget_bytes: int | None = None,
    dtype: str | None = None,
    batch_sizes: Iterable[int] | None = None,
    graph_budget_bytes: int | None = None,
) -> Executor:
    """Load a checkpoint folder (or take a loaded one) and make its subnets runnable.

    `packing` is `folded`, `shared` or `views`; None takes what measured fastest: `folded` on a
    CPU that can pack (docs/decisions/020-folded-first.md) and on CUDA, else `views`.
    `budget_bytes` limits what is packed, on CUDA all weights on the device. `dtype` is `float32`
    or, for packed CUDA slices, `bfloat16` (the default there) or `float16`. `batch_sizes` and
    `graph_budget_bytes` say which CUDA graphs to capture (`DeviceExecutor`); a CPU has none.
    Raises CheckpointError when the folder or a subnet id is not what it should be, ValueError for
    another packing or dtype, or a device that is not there.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_checkpoint(checkpoint)
    packing = packing or _default_packing(device, checkpoint)
    if packing not in PACKINGS:
        raise ValueError(f"packing is {packing!r}, allowed {', '.join(PACKINGS)}")
    kind = torch.device(device).type
    allowed = ("bfloat16", "float16", "float32") if _is_sliced(kind, packing) else ("float32",)
    if dtype is not None and dtype not in allowed:
        raise ValueError(
            f"dtype is {dtype!r}, allowed {', '.join(allowed)} on {device} with packing {packing}"
        )
    if packing == "views":
        return EagerExecutor(
            checkpoint,
            device=device,
            threads=threads,
            max_batch_size=max_batch_size,
            subnet_ids=subnet_ids,
        )
    if kind != "cpu":
        from subnetact.cuda_accelerator import CudaAccelerator
        from subnetact.device_executor import DeviceExecutor

        return DeviceExecutor(
            checkpoint,
            CudaAccelerator(device),
            packing=packing,
            dtype=getattr(torch, dtype or allowed[0]),
            max_batch_size=max_batch_size,
            batch_sizes=batch_sizes,
            subnet_ids=subnet_ids,
            budget_bytes=budget_bytes,
            graph_budget_bytes=graph_budget_bytes,
        )
    from subnetact.packed_executor import PackedExecutor

    return PackedExecutor(
        checkpoint,
        packing=packing,
        threads=threads,
        max_batch_size=max_batch_size,
        subnet_ids=subnet_ids,
        budget_bytes=budget_bytes,
    )


def _is_sliced(kind: str, packing: str) -> bool:
    return kind != "cpu" and packing != "views"


def _default_packing(device: str, checkpoint: Checkpoint) -> str:
    """Packing pays for convolutions on a CPU, token models have none; on CUDA graphs pay."""
    if torch.device(device).type != "cpu":
        return "folded"
    return "folded" if is_available() and checkpoint.input.kind == "image" else "views"
