"""`Accelerator`: the few things in which a CUDA device differs from what stands in for it.

Two lanes of work, computing and copying, marks on them, page-locked memory, and calls that are
captured once and replayed. `CudaAccelerator` (`cuda_accelerator.py`) has them; `HostAccelerator`
stands in for it on a CPU: its copies are real, its lanes are the caller's, and a replay runs the
call again. So everything above this seam runs, and is tested, without a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch.nn import functional as F

from subnetact.conv_geometry import ConvGeometry
from subnetact.cuda.pointwise import in_parts
from subnetact.norms import Affine


class Mark(Protocol):
    """A point on a lane."""

    def wait(self) -> None:
        """Block the calling thread until the lane has come to this point."""
        ...


class Replay(Protocol):
    """A captured call: runs again, on the very memory it was captured with."""

    def replay(self) -> None: ...


class Accelerator(Protocol):
    """A device with two lanes. Whoever launches holds the device alone (`CudaExecutor`)."""

    @property
    def device(self) -> torch.device: ...

    @property
    def has_fused_convolutions(self) -> bool:
        """Whether convolution, bias, addition and ReLU can be one kernel here."""
        ...

    @property
    def why_not_fused(self) -> str:
        """Why they can't be, empty where they can."""
        ...

    def convolve_fused(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        other: torch.Tensor | None,
        geometry: ConvGeometry,
    ) -> torch.Tensor:
        """Return relu(convolution + bias + other) of one kernel; all tensors channels-last.

        Raises RuntimeError for a shape that the library refuses.
        """
        ...

    @property
    def why_in_parts(self) -> str:
        """Why norm, addition and activation are not one kernel here; empty where they are."""
        ...

    def pointwise(
        self, y: torch.Tensor, norm: Affine, other: torch.Tensor | None, act: str | None
    ) -> torch.Tensor:
        """Return act(y * scale + shift + other) in y's memory, (B, C, H, W)."""
        ...

    def time_s(self, call: Callable[[], object]) -> float:
        """Return the seconds that the compute lane takes for a call. The host waits for it."""
        ...

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return host memory that the device copies from by itself; plain if none is left."""
        ...

    def computing(self) -> AbstractContextManager[object]:
        """Launch on the compute lane within this context."""
        ...

    def copying(self) -> AbstractContextManager[object]:
        """Launch on the copy lane within this context."""
        ...

    def searching(self) -> AbstractContextManager[object]:
        """Let libraries time their algorithms for shapes that are new, by the calling thread.

        A search takes seconds, so it is for the warm-up. Elsewhere a shape that was searched for
        runs as was found, any other as the library guesses.
        """
        ...

    def copy(self, into: torch.Tensor, source: torch.Tensor) -> None:
        """Copy on the current lane; the host does not wait."""
        ...

    def mark(self) -> Mark:
        """Mark the current lane here."""
        ...

    def after(self, mark: Mark) -> None:
        """Have the current lane wait for a mark; the host does not."""
        ...

    def peak_bytes(self, call: Callable[[], None]) -> int:
        """Run a call as it will be captured, and return the most memory that it took meanwhile."""
        ...

    def capture(self, call: Callable[[], None]) -> tuple[Replay, int]:
        """Capture a call into the shared pool; return it, and the bytes by which the pool grew."""
        ...

    def renew_pool(self) -> None:
        """Capture into a fresh pool from now on: a capture that failed may have spoilt this one.

        What was captured before can still be replayed.
        """
        ...

    def drop_captures(self) -> None:
        """Free the pool with everything captured; nothing captured before may be replayed."""
        ...

    def trim(self) -> None:
        """Give memory that nobody uses back to the device."""
        ...


class HostAccelerator:
    """The CPU in place of a device: copies are real, everything is done when a call returns."""

    device = torch.device("cpu")
    has_fused_convolutions = False
    why_not_fused = "a CPU in place of the device"
    why_in_parts = why_not_fused

    def convolve_fused(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        other: torch.Tensor | None,
        geometry: ConvGeometry,
    ) -> torch.Tensor:
        """See `Accelerator`; in parts."""
        g = geometry
        y = F.conv2d(x, weight, bias, g.stride, g.padding, g.dilation, g.groups)
        return torch.relu_(y if other is None else y.add_(other))

    def pointwise(
        self, y: torch.Tensor, norm: Affine, other: torch.Tensor | None, act: str | None
    ) -> torch.Tensor:
        """See `Accelerator`."""
        return in_parts(y, norm, other, act)

    def time_s(self, call: Callable[[], object]) -> float:
        """See `Accelerator`."""
        start_s = time.perf_counter()
        call()
        return time.perf_counter() - start_s

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See `Accelerator`; plain memory, zeroed."""
        return torch.zeros(shape, dtype=dtype)

    def computing(self) -> AbstractContextManager[object]:
        """See `Accelerator`."""
        return nullcontext()

    def copying(self) -> AbstractContextManager[object]:
        """See `Accelerator`."""
        return nullcontext()

    def searching(self) -> AbstractContextManager[object]:
        """See `Accelerator`; there is nothing to search for."""
        return nullcontext()

    def copy(self, into: torch.Tensor, source: torch.Tensor) -> None:
        """See `Accelerator`."""
        into.copy_(source)

    def mark(self) -> Mark:
        """See `Accelerator`."""
        return _Reached()

    def after(self, mark: Mark) -> None:
        """See `Accelerator`; a mark is always reached."""

    def peak_bytes(self, call: Callable[[], None]) -> int:
        """See `Accelerator`; nothing is captured here, so nothing is held."""
        call()
        return 0

    def capture(self, call: Callable[[], None]) -> tuple[Replay, int]:
        """See `Accelerator`; a replay runs the call again."""
        return _Again(call), 0

    def renew_pool(self) -> None:
        """See `Accelerator`; there is no pool."""

    def drop_captures(self) -> None:
        """See `Accelerator`."""

    def trim(self) -> None:
        """See `Accelerator`."""


class _Reached:
    def wait(self) -> None:
        pass


class _Again:
    def __init__(self, call: Callable[[], None]):
        self.replay = call
