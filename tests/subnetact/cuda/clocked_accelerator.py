"""A device with a clock of its own, which a test reads: replays are faster than calls."""

from __future__ import annotations

from collections.abc import Callable

import torch

from slackfit.graph_forms import EAGER
from slackfit.profile import LatencyProfile, SubnetProfile
from subnetact.cuda.accelerator import Replay
from subnetact.cuda.cuda_executor import CudaExecutor
from subnetact.cuda.cuda_supernet import CudaBinding
from supernet import Checkpoint
from tests.subnetact.cuda.lane_accelerator import LaneAccelerator

REPLAYED_S, EAGER_S = 1e-3, 4e-3  # of a batch of one on the smallest subnet
SIZES = (1, 2, 4)


def both_forms(checkpoint: Checkpoint) -> LatencyProfile:
    """A padded profile of the device: eager batches are bound by their launches, replays are not.

    A replay of four takes 2.2 times that of one, and the third subnet 2.0 times the first.
    """

    def latency_s(place: int) -> dict[str, tuple[float, ...]]:
        cost = 1.0 + 0.5 * place
        return {
            "p50": tuple(REPLAYED_S * cost * (0.6 + 0.4 * size) for size in SIZES),
            EAGER: tuple(EAGER_S * cost * (0.95 + 0.05 * size) for size in SIZES),
        }

    return LatencyProfile(
        name="both forms",
        device="a clock",
        dtype="float32",
        batch_sizes=SIZES,
        padded=True,
        subnets=tuple(
            SubnetProfile(
                subnet_id=subnet.subnet_id,
                accuracy=0.5 + 0.1 * place,
                macs=subnet.macs,
                latency_s=latency_s(place),
            )
            for place, subnet in enumerate(checkpoint.subnets)
        ),
    )


class ClockedAccelerator(LaneAccelerator):
    """Takes the times of a profile; `pass_s` lets time pass, and with it what else happens."""

    def __init__(self, profile: LatencyProfile, capture_s: float = 0.02) -> None:
        super().__init__()
        self.now_s = 0.0
        self.capture_s = capture_s
        self.pass_s: Callable[[float], None] = self._pass
        self.captures: list[tuple[str, int]] = []
        self.fails: Callable[[], None] = lambda: None  # raises when a capture is to fail
        self._times_s = {
            row: {(s, b): profile.latency_s(s, b, row) for s in profile.subnet_ids for b in SIZES}
            for row in ("p50", EAGER)
        }
        self._is_silent = False
        self._last = ("", 0)

    def clock(self) -> float:
        return self.now_s

    def capture(self, call: Callable[[], None]) -> tuple[Replay, int]:
        self._silently(call)
        self.captures.append(self._last)
        self.pass_s(self.capture_s)
        self.fails()
        return _TimedReplay(self, call), self.graph_bytes

    def replay(self, call: Callable[[], None]) -> None:
        self._silently(call)
        self.pass_s(self._times_s["p50"][self._last])

    def computed(self, subnet_id: str, size: int) -> None:
        """Note that a batch was computed; a call of its own takes its time here."""
        self._last = (subnet_id, size)
        if not self._is_silent:
            self.pass_s(self._times_s[EAGER][self._last])

    def _silently(self, call: Callable[[], None]) -> None:
        self._is_silent = True
        try:
            call()
        finally:
            self._is_silent = False

    def _pass(self, duration_s: float) -> None:
        self.now_s += duration_s


class _TimedReplay:
    def __init__(self, accelerator: ClockedAccelerator, call: Callable[[], None]) -> None:
        self._accelerator = accelerator
        self._call = call

    def replay(self) -> None:
        self._accelerator.replay(self._call)


class ClockedExecutor(CudaExecutor):
    """On a `ClockedAccelerator`, in float32, for batches of up to four."""

    def __init__(
        self, checkpoint: Checkpoint, accelerator: ClockedAccelerator, **options: int | None
    ) -> None:
        super().__init__(
            checkpoint,
            accelerator,
            dtype=torch.float32,
            max_batch_size=SIZES[-1],
            batch_sizes=SIZES,
            graph_budget_bytes=options.get("graph_budget_bytes"),
        )
        self.clocked = accelerator
        self.graphs._clock = accelerator.clock

    def _eager(self, binding: CudaBinding, subnet_id: str, samples: torch.Tensor) -> torch.Tensor:
        logits = super()._eager(binding, subnet_id, samples)
        self.clocked.computed(subnet_id, len(samples))
        return logits
