"""`InputRing`: page-locked rooms through which samples go to the device and logits come back.

A room belongs to one batch from `acquire` to `release`. With two of them the next batch is copied
while the present one is computed. All memory is taken once: page-locked allocation per request is
slow.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import torch

from subnetact.cuda.accelerator import Accelerator
from supernet.sample import SampleSpec


class BatchRoom(NamedTuple):
    """Room for one batch: samples (B, ...) on both sides, (B, classes) float32 coming back."""

    host_input: torch.Tensor
    device_input: torch.Tensor
    host_output: torch.Tensor


class InputRing:
    """A fixed number of rooms, each for up to `max_batch_size` samples."""

    def __init__(
        self,
        accelerator: Accelerator,
        max_batch_size: int,
        sample: SampleSpec,
        num_classes: int,
        *,
        num_rooms: int = 2,
        patience_s: float = 60.0,
    ):
        """`patience_s` is how long `acquire` waits before it gives up."""
        if num_rooms < 1:
            raise ValueError(f"num_rooms is {num_rooms}, allowed 1 or more")
        self._free = threading.Semaphore(num_rooms)
        self._patience_s = patience_s
        self._lock = threading.Lock()
        empty = torch.from_numpy(sample.zeros(max_batch_size))
        with accelerator.computing():
            self._rooms = [
                BatchRoom(
                    accelerator.pinned(tuple(empty.shape), empty.dtype),
                    empty.to(accelerator.device, copy=True),
                    accelerator.pinned((max_batch_size, num_classes), torch.float32),
                )
                for _ in range(num_rooms)
            ]
        self.num_bytes = sum(room.device_input.nbytes for room in self._rooms)

    def acquire(self) -> BatchRoom:
        """Wait for a free room.

        Raises RuntimeError when none becomes free in time: batches were launched whose results
        nobody took.
        """
        if not self._free.acquire(timeout=self._patience_s):
            raise RuntimeError(
                f"no room for a batch became free in {self._patience_s:g} s: take the results of "
                "launched batches before launching more"
            )
        with self._lock:
            return self._rooms.pop()

    def release(self, room: BatchRoom) -> None:
        """Give a room back; nothing on the device may use it any more."""
        with self._lock:
            self._rooms.append(room)
        self._free.release()
