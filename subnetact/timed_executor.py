"""`TimedExecutor`: occupies a device for the profiled time without computing anything.

A labelled fake, for tests and for measurements of what surrounds the device: it sleeps for the
latency that a profile gives and answers deterministic logits. Whatever reports a figure made with
it must say so (`is_timed`). It fulfils the same protocol as the real executor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from slackfit.profile import LatencyProfile
from subnetact.executor import NO_CACHE, StagingExecutor
from supernet.sample import SampleSpec


class TimedLaunched(NamedTuple):
    """A batch that a device would be busy with: (B,) labels, and until when."""

    labels: np.ndarray
    finish_s: float
    form: str = "timed"


class TimedExecutor(StagingExecutor):
    """Sleeps for the profiled latency of each batch; the answer is a function of the sample alone.

    The logits of a sample are one-hot at `sum of its numbers mod num_classes`, so that a test can
    tell whose answer it got. `clock` and `sleep` are injected for virtual time.
    """

    is_timed = True

    def __init__(
        self,
        profile: LatencyProfile,
        sample: SampleSpec,
        num_classes: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.device = profile.device
        self.sample = sample
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

    def launch(self, subnet_id: str, slots: Sequence[np.ndarray]) -> TimedLaunched:
        """Note when a device would be done.

        Raises ProfileError for an unknown subnet or an unprofiled batch size.
        """
        start_s = self._clock()
        labels = self._labels(slots)
        return TimedLaunched(labels, start_s + self._profile.latency_s(subnet_id, len(labels)))

    def result(self, launched: TimedLaunched) -> np.ndarray:
        """Sleep until the device would be done; the batch's float32 logits."""
        labels = launched.labels
        logits = np.zeros((len(labels), self.num_classes), dtype=np.float32)  # (B, num_classes)
        logits[np.arange(len(labels)), labels] = 1.0
        self._sleep(max(0.0, launched.finish_s - self._clock()))
        return logits

    def _labels(self, slots: Sequence[np.ndarray]) -> np.ndarray:
        """Return a label (B,) for each sample."""
        rows = [slot.reshape(len(slot), -1) for slot in slots]
        if self.sample.is_text:  # of several lengths
            sums = np.concatenate([row.sum(axis=1, dtype=np.int64) for row in rows])
        else:  # one sum for all: those of small samples cost more than the rest of a batch
            sums = np.concatenate(rows).sum(axis=1, dtype=np.int64)
        return sums % self.num_classes

    def warm_up(self) -> None:
        """Do nothing: there is nothing to warm."""

    def counts(self) -> Mapping[str, int]:
        """See `Executor`: nothing is held."""
        return NO_CACHE

    def close(self) -> None:
        """Do nothing: there is nothing to release."""
