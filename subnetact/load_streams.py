"""`load_stream_executor`: which executor a decoder gets on a device, in which packing.

As `load_executor` for models that answer at once.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from subnetact.decoding.stream_executor import StreamExecutor
from supernet.checkpoint import Checkpoint

STREAM_PACKINGS = {"cpu": ("views", "packed", "half", "int8"), "cuda": ("views",)}
"""In which form a decoder's weights may be read, by kind of device; the first is the default."""
_DTYPES = {"cpu": ("float32",), "cuda": ("bfloat16", "float16", "float32")}
BLOCK_TOKENS = {"cpu": 64, "cuda": 16}
"""Tokens of a block of the cache, by kind of device: slabs on a CPU, gathered pages on CUDA."""


def stream_form(device: str, packing: str | None, dtype: str | None) -> tuple[str, str]:
    """Return packing and dtype of a decoder on a device, the default where None is given.

    float32 on a CPU and bfloat16 on CUDA. Raises ValueError for what the device does not have.
    """
    kind = torch.device(device).type
    if kind not in STREAM_PACKINGS:
        raise ValueError(f"device is {device!r}, allowed cpu or cuda")
    packing, dtype = packing or STREAM_PACKINGS[kind][0], dtype or _DTYPES[kind][0]
    for name, given, allowed in (
        ("packing", packing, STREAM_PACKINGS[kind]),
        ("dtype", dtype, _DTYPES[kind]),
    ):
        if given not in allowed:
            raise ValueError(
                f"{name} is {given!r}, of a decoder on {device} allowed {', '.join(allowed)}"
            )
    return packing, dtype


def load_stream_executor(
    checkpoint: Checkpoint,
    *,
    device: str = "cpu",
    threads: int | None = 1,
    capacity_tokens: int = 4096,
    subnet_ids: Iterable[str] | None = None,
    packing: str | None = None,
    dtype: str | None = None,
    most_decodes: int = 32,
    graph_budget_bytes: int | None = None,
) -> StreamExecutor:
    """Make a decoder's subnets runnable; `warm_up` does what else is to be done before the first.

    `subnet_ids` None: all that the checkpoint offers and the device can run (one-bit weights are a
    CPU's). `packing` and `dtype` are as `stream_form` says, and None takes its default.
    On CUDA decodes of up to `most_decodes` streams are captured as graphs, which hold at
    most `graph_budget_bytes` (None: no limit, 0: no graphs).

    Raises CheckpointError for an unknown subnet; ValueError for no decoder, another packing or
    dtype, or a device that is not there.
    """
    packing, dtype = stream_form(device, packing, dtype)
    kind = torch.device(device).type
    if kind == "cpu":
        offered = [form.subnet_id for form in checkpoint.forms]
        return StreamExecutor(
            checkpoint,
            capacity_tokens=capacity_tokens,
            block_tokens=BLOCK_TOKENS[kind],
            threads=threads,
            subnet_ids=offered if subnet_ids is None else subnet_ids,
            packing=packing,
        )
    from subnetact.cuda.cuda_accelerator import CudaAccelerator
    from subnetact.cuda.cuda_stream_executor import CudaStreamExecutor

    return CudaStreamExecutor(
        checkpoint,
        CudaAccelerator(device),
        capacity_tokens=capacity_tokens,
        page_tokens=BLOCK_TOKENS[kind],
        dtype=getattr(torch, dtype),
        subnet_ids=subnet_ids,
        decode_counts=decode_counts(most_decodes),
        graph_budget_bytes=graph_budget_bytes,
    )


def decode_counts(most: int) -> tuple[int, ...]:
    """Return the numbers of decodes to capture: powers of two, the last of which takes `most`.

    >>> decode_counts(5)
    (1, 2, 4, 8)
    """
    return tuple(2**i for i in range((most - 1).bit_length() + 1))
