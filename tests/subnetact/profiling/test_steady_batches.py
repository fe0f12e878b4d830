"""What a batch takes between others, on a virtual device that computes beside the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from slackfit.profile import LatencyProfile, SubnetProfile
from subnetact.profiling.profiler import steady_batch_s
from subnetact.timed_executor import TimedExecutor, TimedLaunched
from supernet.sample import SampleSpec

SAMPLE = SampleSpec(shape=(1, 2, 2))
DEVICE_S = 0.005


class Device(TimedExecutor):
    """Takes the host `host_s` for each launch."""

    def __init__(self, host_s: float, num_under_way: int) -> None:
        self.now_s = 0.0
        self._host_s = host_s
        subnet = SubnetProfile(
            subnet_id="small", accuracy=0.7, macs=0, latency_s={"p50": (DEVICE_S,)}
        )
        profile = LatencyProfile(
            name="one", device="nowhere", dtype="float32", batch_sizes=(2,), subnets=(subnet,)
        )
        super().__init__(
            profile,
            SAMPLE,
            10,
            clock=lambda: self.now_s,
            sleep=self._pass,
            num_under_way=num_under_way,
        )
        self.num_under_way_now = 0

    def launch(self, subnet_id: str, slots: Sequence[np.ndarray]) -> TimedLaunched:
        self._pass(self._host_s)
        self.num_under_way_now += 1
        return super().launch(subnet_id, slots)

    def result(self, launched: TimedLaunched) -> np.ndarray:
        self.num_under_way_now -= 1
        return super().result(launched)

    def _pass(self, duration_s: float) -> None:
        self.now_s += duration_s


@pytest.mark.parametrize(
    ("host_s", "num_under_way", "expected_s"),
    [(0.003, 1, 0.008), (0.003, 2, 0.005), (0.007, 2, 0.007), (0.0, 2, 0.005)],
)
def test_the_longer_of_host_and_device_counts(host_s, num_under_way, expected_s):
    device = Device(host_s, num_under_way)
    taken_s = steady_batch_s(device, "small", SAMPLE.zeros(2), clock=lambda: device.now_s)
    assert taken_s == pytest.approx(expected_s)
    assert device.num_under_way_now == 0, "all results were taken"
