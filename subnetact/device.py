"""What this device is called and can do, how its time is read, which errors are its memory's."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

# oneDNN keeps 1,024 compiled primitives, one per shape and batch size: fewer than six subnets at
# sixteen batch sizes have, and what has fallen out is compiled again within a batch. It reads this
# at its first primitive, so after torch's import is early enough.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

_NO_MEMORY = (  # how libraries say so in errors that are not torch.OutOfMemoryError
    "out of memory",
    "can't allocate memory",  # the allocator of a CPU
    "unable to find an engine",  # cuDNN: no plan's workspace found room
    "STATUS_ALLOC_FAILED",  # cuBLAS and cuDNN
)


def device_name(device: str) -> str:
    """Return a short stable name: the GPU's, or the CPU's with its number of cores.

    Raises ValueError when `device` is neither `cpu` nor an available CUDA device.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("device cuda was asked for, but no CUDA device is available; use cpu")
        index, count = torch.device(device).index or 0, torch.cuda.device_count()
        if index >= count:
            raise ValueError(f"device is {device!r}, allowed cuda:0 to cuda:{count - 1}")
        return torch.cuda.get_device_name(device)
    if kind == "cpu":
        return f"{_cpu_model()} x{os.cpu_count()}"
    raise ValueError(f"device is {device!r}, allowed cpu or cuda")


def synchronize(device: str) -> None:
    """Wait until the device has finished what was launched; a CPU has by then."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, in the words of any library.

    >>> is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    False
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def has_bf16(device: str) -> bool:
    """Whether there are instructions for bf16; elsewhere it is emulated, several times slower."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return not cpu_flags().isdisjoint(("avx512_bf16", "amx_bf16"))


def has_fast_bf16(device: str) -> bool:
    """Whether bf16 is faster than float32 without a doubt."""
    if torch.device(device).type == "cuda":
        return has_bf16(device)
    # Not avx512_bf16: with it alone convolutions took 1.2 to 1.9 times float32's time.
    return "amx_bf16" in cpu_flags()


def cpu_flags() -> frozenset[str]:
    """Return what /proc/cpuinfo says the processor can (`avx2`, ..); empty without that file."""
    return frozenset((_cpu_info("flags") or "").split())


def _cpu_model() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_info(key: str) -> str | None:
    """Return a line of /proc/cpuinfo (of the first core), None where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == key:
            return " ".join(value.split())
    return None
