"""`load_executor`: which executor a checkpoint gets on a device, in which packing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from subnetact.cache import SLICE_PACKINGS
from subnetact.cpu.packing import is_available
from subnetact.executor import Executor
from subnetact.views.eager_executor import EagerExecutor
from supernet.checkpoint import Checkpoint, load_checkpoint

PACKINGS = (*SLICE_PACKINGS, "views")


def mebibytes(number: float | None) -> int | None:
    """Return a limit in bytes; None, which is no limit, stays."""
    return None if number is None else int(number * 2**20)


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
    `graph_budget_bytes` say which CUDA graphs to capture (`CudaExecutor`); a CPU has none.
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
        from subnetact.cuda.cuda_accelerator import CudaAccelerator
        from subnetact.cuda.cuda_executor import CudaExecutor

        return CudaExecutor(
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
    from subnetact.cpu.packed_executor import PackedExecutor

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
