"""`FusedSites`: which sites run as one fused kernel, chosen by time, on the shapes that are run.

A fused convolution may be refused for a shape, or be far slower than its parts there (a 7x7 one in
channels-last order, for instance). So the first run of a site at a batch size, at the warm-up,
tries and times both. All subnets share what was found: a choice is of a geometry, not of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from subnetact.conv_geometry import ConvGeometry
from subnetact.cuda.accelerator import Accelerator

_ROUNDS = 3
_TOLERATED = 1.1  # fused, unless its parts are faster by more: launches cost less in a graph


class _SiteShape(NamedTuple):
    geometry: ConvGeometry
    adds: bool
    batch_size: int


class FusedSites:
    """The choices of one device; one run at a time."""

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self._is_fused: dict[_SiteShape, bool] = {}
        self._is_choosing = False

    @property
    def num_tried(self) -> int:
        """How many shapes of sites were tried, a batch size being part of a shape."""
        return len(self._is_fused)

    @property
    def num_fused(self) -> int:
        """How many of them run as one kernel."""
        return sum(list(self._is_fused.values()))  # read by any thread

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """Choose for the shapes that run within this context and are new."""
        self._is_choosing = True
        try:
            yield
        finally:
            self._is_choosing = False

    def run(
        self,
        geometry: ConvGeometry,
        plain: Callable[[], torch.Tensor],
        weight: torch.Tensor,
        bias: torch.Tensor,
        x: torch.Tensor,
        other: torch.Tensor | None,
    ) -> torch.Tensor:
        """Run convolution, bias, addition and ReLU as was chosen.

        Where nothing was, fused if the library takes it. A refusal then is not remembered: it may
        be for want of memory.
        """

        def fused() -> torch.Tensor:
            return self._accelerator.convolve_fused(x, weight, bias, other, geometry)

        shape = _SiteShape(geometry, other is not None, len(x))
        if self._is_choosing and shape not in self._is_fused:
            self._is_fused[shape] = self._is_faster(fused, plain)
        if not self._is_fused.get(shape, True):
            return plain()
        try:
            return fused()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return plain()

    def _is_faster(
        self, fused: Callable[[], torch.Tensor], plain: Callable[[], torch.Tensor]
    ) -> bool:
        try:
            fused()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # in many words
            return False
        plain()  # searches, and takes its workspace
        time_s = self._accelerator.time_s
        taken_s = [(time_s(fused), time_s(plain)) for _ in range(_ROUNDS)]
        fused_s, plain_s = (min(each) for each in zip(*taken_s, strict=True))
        return fused_s <= _TOLERATED * plain_s
