"""`TimedExecutor`: occupies a device for the profiled time without computing anything.

A labelled fake, for tests and for measurements of what surrounds the device: it sleeps for the
latency that a profile gives and answers deterministic logits. Whatever reports a figure made with
it must say so (`is_timed`). It fulfils the same protocol as the real executor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from slackfit.profile import LatencyProfile


class TimedExecutor:
    """Sleeps for the profiled latency of each batch; the answer is a function of the sample alone.

    The logits of a sample are one-hot at `sum of its bytes mod num_classes`, so that a test can
    tell whose answer it got. `clock` and `sleep` are injected for virtual time.
    """

    is_timed = True

    def __init__(
        self,
        profile: LatencyProfile,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.device = profile.device
        self.input_shape = input_shape
        self.num_classes = num_classes
        self.subnet_ids = profile.subnet_ids
        self.max_batch_size = profile.max_batch_size
        self.threads = profile.threads
        self.dtype = profile.dtype
        self.details = "timed: nothing is computed"
        self.packing = profile.packing or "views"
        self._profile = profile
        self._clock = clock
        self._sleep = sleep

    def run(self, subnet_id: str, inputs: np.ndarray) -> np.ndarray:
        """Block for the profiled latency of this batch and return its float32 logits.

        Raises ProfileError for an unknown subnet or an unprofiled batch size, and ValueError for
        inputs that are not uint8 (B, C, H, W) of the served shape.
        """
        finish_s = self._clock() + self._profile.latency_s(subnet_id, len(inputs))
        if inputs.dtype != np.uint8 or inputs.shape[1:] != self.input_shape:
            raise ValueError(
                f"inputs are {inputs.dtype} {inputs.shape}, "
                f"allowed uint8 (B, {', '.join(map(str, self.input_shape))})"
            )
        labels = inputs.reshape(len(inputs), -1).sum(axis=1, dtype=np.int64) % self.num_classes
        logits = np.zeros((len(inputs), self.num_classes), dtype=np.float32)  # (B, num_classes)
        logits[np.arange(len(inputs)), labels] = 1.0
        self._sleep(max(0.0, finish_s - self._clock()))
        return logits

    def warm_up(self) -> None:
        """Do nothing: there is nothing to warm."""

    def counts(self) -> Mapping[str, int]:
        """Return nothing: nothing happens."""
        return {}

    def close(self) -> None:
        """Do nothing: there is nothing to release."""
