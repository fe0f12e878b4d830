"""Which errors say that memory ran out: torch, and the libraries below it, have many words."""

from __future__ import annotations

import torch

_NO_MEMORY = (  # how libraries say so in errors that are not torch.OutOfMemoryError
    "out of memory",
    "can't allocate memory",  # the allocator of a CPU
    "unable to find an engine",  # cuDNN: no plan's workspace found room
    "STATUS_ALLOC_FAILED",  # cuBLAS and cuDNN
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, in the words of any library.

    >>> is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    False
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
