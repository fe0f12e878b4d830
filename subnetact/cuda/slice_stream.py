"""`SliceStream`: weights that are not resident, copied just before they are used.

Two staging buffers on the device, each as large as the largest slice: while the compute lane reads
one, the copy lane fills the other with the next. The host waits for nothing. Which slice comes next
is learned from the last run of the same subnet; a wrong guess costs a copy, never a result.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

import torch

from subnetact.cuda.accelerator import Accelerator, Mark
from subnetact.cuda.slice_layout import SliceLayout


class Source(Protocol):
    """A slice in page-locked host memory."""

    @property
    def key(self) -> Hashable: ...

    @property
    def layout(self) -> SliceLayout: ...

    @property
    def flat(self) -> torch.Tensor: ...


@dataclass(slots=True)
class _StagingBuffer:
    buffer: torch.Tensor
    key: Hashable | None = None
    is_filled: Mark | None = None  # on the copy lane
    is_read: Mark | None = None  # on the compute lane: may be overwritten after it


class SliceStream:
    """Used by one run at a time (`begin`, then `take` and `done` per slice)."""

    def __init__(self, accelerator: Accelerator, dtype: torch.dtype, num_stages: int = 2):
        self._accelerator = accelerator
        self._dtype = dtype
        self._stages = [
            _StagingBuffer(torch.empty(0, dtype=dtype, device=accelerator.device))
            for _ in range(num_stages)
        ]
        self._next = 0
        self._following: dict[Hashable, Source] = {}
        self._last: Hashable | None = None
        self.num_copies = 0
        self.num_copied_bytes = 0
        self.num_prefetched = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of the staging buffers."""
        return sum(stage.buffer.nbytes for stage in self._stages)

    def reserve(self, num_elements: int) -> None:
        """Make every buffer at least this long. Raises torch.OutOfMemoryError; idle device only."""
        for stage in self._stages:
            if stage.buffer.numel() < num_elements:
                stage.buffer = torch.empty(0, dtype=self._dtype, device=self._accelerator.device)
                stage.key = None
                with self._accelerator.computing():
                    stage.buffer = torch.empty(
                        num_elements, dtype=self._dtype, device=self._accelerator.device
                    )
                    stage.is_read = self._accelerator.mark()

    def begin(self, following: dict[Hashable, Source]) -> None:
        """Start a run; `following` says which slice comes after which, and is updated by it."""
        self._following = following
        self._last = None

    def take(self, source: Source) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return (weight, bias) on the device; the compute lane waits until they are there."""
        stage = self._stage_of(source.key)
        if stage is None:
            stage = self._fill(source)
        else:
            self.num_prefetched += 1
        assert stage.is_filled is not None, "a stage with a key was filled"
        self._accelerator.after(stage.is_filled)
        if self._last is not None:
            self._following[self._last] = source
        self._last = source.key
        coming = self._following.get(source.key)
        if coming is not None and self._stage_of(coming.key) is None:
            self._fill(coming, keep=stage)
        return source.layout.views(stage.buffer)

    def done(self, source: Source) -> None:
        """Note that what reads the slice has been launched."""
        stage = self._stage_of(source.key)
        assert stage is not None, "done comes after take"
        stage.is_read = self._accelerator.mark()

    def _stage_of(self, key: Hashable) -> _StagingBuffer | None:
        return next((stage for stage in self._stages if stage.key == key), None)

    def _fill(self, source: Source, keep: _StagingBuffer | None = None) -> _StagingBuffer:
        """Copy a slice into the stage that is next in turn, and is not `keep`."""
        stage = self._stages[self._next]
        self._next = (self._next + 1) % len(self._stages)
        if stage is keep:
            return self._fill(source, keep)
        with self._accelerator.copying():
            if stage.is_read is not None:
                self._accelerator.after(stage.is_read)
            self._accelerator.copy(stage.buffer[: len(source.flat)], source.flat)
            stage.is_filled = self._accelerator.mark()
        stage.key = source.key
        self.num_copies += 1
        self.num_copied_bytes += source.flat.nbytes
        return stage
