"""A CPU in place of a CUDA device, with a copy lane whose copies come as late as they may."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from subnetact.cuda.accelerator import HostAccelerator, Mark, Replay


class LateMark:
    """A mark that knows what was launched on its lane before it."""

    def __init__(self, accelerator: LaneAccelerator, lane: str):
        self.lane = lane
        self.time = accelerator.tick()
        self.filled = accelerator.filled  # the copy that it stands behind
        self._accelerator = accelerator

    def wait(self) -> None:
        self._accelerator.finish(self)


class LaneAccelerator(HostAccelerator):
    """Copies of the copy lane happen as late as a device may do them, and never too early.

    They are carried out when somebody waits for a mark behind them; until then the memory holds
    what it held. Writing to memory whose last reader was not waited for is an error.
    """

    def __init__(self) -> None:
        self._lane = "compute"
        self._time = 0
        self._queue: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self._used_at: dict[int, int] = {}  # address: when the compute lane began to read it
        self.filled = 0
        self._copy_lane_saw = 0  # up to when the copy lane has waited for the compute lane
        self.memory: Callable[[], None] = lambda: None  # raises when the device is full
        self.graph_bytes = 0

    def tick(self) -> int:
        self._time += 1
        return self._time

    @contextmanager
    def copying(self) -> Iterator[None]:
        before, self._lane = self._lane, "copy"
        try:
            yield
        finally:
            self._lane = before

    def copy(self, into: torch.Tensor, source: torch.Tensor) -> None:
        if self._lane == "compute":
            self.memory()
            into.copy_(source)
            return
        address = into.data_ptr()
        began = self._used_at.get(address)
        assert began is None or self._copy_lane_saw > began, "written over while it is read"
        self.filled = address
        self._queue.append((self.tick(), into, source))

    def mark(self) -> Mark:
        return LateMark(self, self._lane)

    def after(self, mark: Mark) -> None:
        assert isinstance(mark, LateMark)
        if self._lane == "copy":
            if mark.lane == "compute":
                self._copy_lane_saw = max(self._copy_lane_saw, mark.time)
        else:
            self.finish(mark)

    def finish(self, mark: LateMark) -> None:
        if mark.lane != "copy":
            return
        for item in [item for item in self._queue if item[0] < mark.time]:
            _, into, source = item
            into.copy_(source)
            if not into.is_floating_point():  # an input room is handed back by its owner
                mark.filled = 0
            self._queue = [other for other in self._queue if other is not item]
        if mark.filled:
            self._used_at[mark.filled] = self.tick()

    def peak_bytes(self, call: Callable[[], None]) -> int:
        call()
        return self.graph_bytes

    def capture(self, call: Callable[[], None]) -> tuple[Replay, int]:
        return super().capture(call)[0], self.graph_bytes
