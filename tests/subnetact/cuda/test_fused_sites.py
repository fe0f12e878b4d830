"""Convolutions that are one kernel with what follows, on an accelerator that fuses in test time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from subnetact.conv_geometry import ConvGeometry
from supernet import Checkpoint
from tests.subnetact.cuda.executor_case import (
    difference,
    make_executor,
    oracle,
    samples,
)
from tests.subnetact.cuda.lane_accelerator import LaneAccelerator


class FusingAccelerator(LaneAccelerator):
    """Fuses convolutions, in ten units of time; refuses some shapes; parts take what is given."""

    has_fused_convolutions = True
    why_not_fused = ""

    def __init__(self, refuses: Callable[[ConvGeometry], bool], parts_take: float) -> None:
        super().__init__()
        self._refuses = refuses
        self._parts_take = parts_take
        self.num_fused = 0

    def convolve_fused(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        other: torch.Tensor | None,
        geometry: ConvGeometry,
    ) -> torch.Tensor:
        assert x.is_contiguous(memory_format=torch.channels_last)
        if self._refuses(geometry):
            raise RuntimeError("FIND was unable to find an engine to execute this computation")
        self.num_fused += 1
        return super().convolve_fused(x, weight, bias, other, geometry)

    def time_s(self, call: Callable[[], object]) -> float:
        before = self.num_fused
        call()
        return 10.0 if self.num_fused > before else self._parts_take


@pytest.mark.parametrize(("parts_take", "is_faster"), [(20.0, True), (9.5, True), (5.0, False)])
def test_a_site_is_fused_where_the_warm_up_found_that_faster_on_its_own_shape(
    checkpoint: Checkpoint, rng: np.random.Generator, parts_take: float, is_faster: bool
) -> None:
    accelerator = FusingAccelerator(lambda geometry: geometry.stride[0] == 2, parts_take)
    executor = make_executor(checkpoint, accelerator, max_batch_size=2, graph_budget_bytes=0)
    executor.warm_up()
    counts = executor.counts()
    assert (
        0 < counts["fused_sites"] < counts["fusable_sites"]
        if is_faster
        else (counts["fused_sites"] == 0 < counts["fusable_sites"])
    )
    wanted = f"fused: {counts['fused_sites']} of {counts['fusable_sites']} sites"
    assert executor.details.endswith(wanted)
    accelerator.num_fused = 0
    for subnet_id in executor.subnet_ids:
        inputs = samples(rng, 2)
        expected = oracle(checkpoint, subnet_id, inputs)
        assert difference(executor.run(subnet_id, inputs), expected) <= 2e-4
    assert (accelerator.num_fused > 0) == is_faster


def test_a_refusal_while_serving_switches_fusion_off_for_no_longer_than_it_lasts(
    checkpoint: Checkpoint, rng: np.random.Generator
) -> None:
    """A library refuses in the same words when it finds no memory."""
    is_full = [False]
    accelerator = FusingAccelerator(lambda _: is_full[0], parts_take=20.0)
    executor = make_executor(checkpoint, accelerator, max_batch_size=2, graph_budget_bytes=0)
    executor.warm_up()
    subnet_id, inputs = executor.subnet_ids[0], samples(rng, 2)
    expected, fused = oracle(checkpoint, subnet_id, inputs), []
    for is_full[0] in (False, True, False):
        accelerator.num_fused = 0
        assert difference(executor.run(subnet_id, inputs), expected) <= 2e-4
        fused.append(accelerator.num_fused)
    assert fused[0] == fused[2] > 0 == fused[1]
