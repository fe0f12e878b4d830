"""`Executor`: the protocol of what runs one batch on one subnet, whichever the device.

It decides nothing: which subnet and which samples is the scheduler's business. Implementations:
`views.eager_executor`, `cpu.packed_executor`, `cuda.cuda_executor`, and `timed_executor`;
`load.load_executor` chooses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np


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


def check_inputs(inputs: np.ndarray, shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless `inputs` are uint8 (B, *shape)."""
    if inputs.dtype != np.uint8 or inputs.ndim != 4 or inputs.shape[1:] != shape:
        raise ValueError(
            f"inputs are {inputs.dtype} {inputs.shape}, expected uint8 (B, "
            f"{', '.join(map(str, shape))})"
        )
