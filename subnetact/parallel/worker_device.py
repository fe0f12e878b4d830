"""Where workers compute, and what they exchange over: both follow from the device alone.

On CUDA devices over NCCL, which wants a device for each worker; workers that share one exchange
through the host's memory, which is slow and lets one device check the whole. On CPUs through memory
that workers share, where that is to be had, else over gloo.
"""

from __future__ import annotations

import torch

from subnetact.parallel.shared_exchange import can_share_memory

DEVICES = ("cpu", "cuda")
MEMORY, GLOO, NCCL = "shared memory", "gloo", "nccl"


def worker_device(device: str, rank: int) -> torch.device:
    """Return the device of one worker, and make it the current one: CUDA devices in turn."""
    if device == "cpu":
        return torch.device("cpu")
    own = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(own)
    return own


def backend_for(device: str, num_workers: int) -> str:
    """Return what `num_workers` exchange over, `MEMORY`, `GLOO` or `NCCL`.

    Raises ValueError for a device that is not known, or not there.
    """
    if device not in DEVICES:
        raise ValueError(f"device is {device!r}, allowed {', '.join(DEVICES)}")
    near = MEMORY if can_share_memory() else GLOO
    if device == "cpu":
        return near
    count = torch.cuda.device_count()
    if not count:
        raise ValueError("device is 'cuda', and there is none here; allowed cpu")
    has_nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    return NCCL if has_nccl and count >= num_workers else near
