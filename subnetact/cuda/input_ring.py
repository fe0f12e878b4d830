"""`InputRing`: page-locked slots through which samples go to the device and logits come back.

A slot belongs to one batch from `acquire` to `release`. With two of them the next batch is copied
while the present one is computed. All memory is taken once: page-locked allocation per request is
slow.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import torch

from subnetact.cuda.accelerator import Accelerator


class Slot(NamedTuple):
    """Room for one batch: (B, C, H, W) uint8 on both sides, (B, classes) float32 coming back."""

    host_input: torch.Tensor
    device_input: torch.Tensor
    host_output: torch.Tensor


class InputRing:
    """A fixed number of slots, each for up to `max_batch_size` samples."""

    def __init__(
        self,
        accelerator: Accelerator,
        max_batch_size: int,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        num_slots: int = 2,
        patience_s: float = 60.0,
    ):
        """`patience_s` is how long `acquire` waits before it gives up."""
        if num_slots < 1:
            raise ValueError(f"num_slots is {num_slots}, allowed 1 or more")
        self._free = threading.Semaphore(num_slots)
        self._patience_s = patience_s
        self._lock = threading.Lock()
        samples = (max_batch_size, *input_shape)
        with accelerator.computing():
            self._slots = [
                Slot(
                    accelerator.pinned(samples, torch.uint8),
                    torch.zeros(samples, dtype=torch.uint8, device=accelerator.device),
                    accelerator.pinned((max_batch_size, num_classes), torch.float32),
                )
                for _ in range(num_slots)
            ]
        self.num_bytes = sum(slot.device_input.nbytes for slot in self._slots)

    def acquire(self, inputs: np.ndarray) -> Slot:
        """Wait for a free slot and put `inputs`, uint8 (B, C, H, W), into its host side.

        Raises RuntimeError when none becomes free in time: batches were launched whose results
        nobody took.
        """
        if not self._free.acquire(timeout=self._patience_s):
            raise RuntimeError(
                f"no input slot became free in {self._patience_s:g} s: take the results of "
                "launched batches before launching more"
            )
        with self._lock:
            slot = self._slots.pop()
        slot.host_input[: len(inputs)].numpy()[...] = inputs
        return slot

    def release(self, slot: Slot) -> None:
        """Give a slot back; nothing on the device may use it any more."""
        with self._lock:
            self._slots.append(slot)
        self._free.release()
