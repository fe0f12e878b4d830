"""`TimedExecutor`: occupies a device for the profiled time, whatever its outputs cost.

A labelled fake, for tests and for measurements of what surrounds the device: it sleeps for the
latency that a profile gives and answers deterministic logits, or those that another executor
computes meanwhile. Whatever reports a figure made with
it must say so (`is_timed`). It fulfils the same protocol as the real executor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import NamedTuple

import numpy as np

from slackfit.profile import LatencyProfile
from subnetact.executor import NO_CACHE, Executor, StagingExecutor
from supernet.sample import SampleSpec


class TimedLaunched(NamedTuple):
    """A batch that a device would be busy with: its logits (B, num_classes), and until when."""

    logits: np.ndarray
    finish_s: float
    form: str = "timed"


class TimedExecutor(StagingExecutor):
    """Sleeps for the profiled latency of each batch; the answer is a function of the sample alone.

    The logits of a sample are one-hot at `sum of its numbers mod num_classes`, so that a test can
    tell whose answer it got. With `outputs` they are that executor's, whose own time counts within
    the profiled one. Batches that are launched beside each other (`num_under_way`) take their time
    one behind the other. `clock` and `sleep` are injected for virtual time.
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
        outputs: Executor | None = None,
        num_under_way: int = 1,
    ) -> None:
        self.num_under_way = num_under_way
        self.device = profile.device
        self.sample = sample
        self.num_classes = num_classes
        self.subnet_ids = profile.subnet_ids
        self.max_batch_size = profile.max_batch_size
        self.threads = profile.threads
        self.dtype = profile.dtype
        self.details = "timed: " + ("nothing is computed" if outputs is None else "sleeps")
        self.packing = profile.packing or "views"
        self._profile = profile
        self._clock = clock
        self._sleep = sleep
        self._outputs = outputs
        self._free_at_s = -inf

    def launch(self, subnet_id: str, slots: Sequence[np.ndarray]) -> TimedLaunched:
        """Compute the outputs, and note when a device would be done with them.

        Raises ProfileError for an unknown subnet or an unprofiled batch size.
        """
        start_s = self._clock()
        takes_s = self._profile.latency_s(subnet_id, sum(map(len, slots)))
        if self._outputs is not None:
            logits = self._outputs.run(subnet_id, np.concatenate(list(slots)))
        else:
            labels = self._labels(slots)
            logits = np.zeros((len(labels), self.num_classes), dtype=np.float32)  # (B, classes)
            logits[np.arange(len(labels)), labels] = 1.0
        if self.num_under_way > 1:
            start_s = max(start_s, self._free_at_s)
        self._free_at_s = start_s + takes_s
        return TimedLaunched(logits, self._free_at_s)

    def result(self, launched: TimedLaunched) -> np.ndarray:
        """Sleep until the device would be done; the batch's float32 logits."""
        self._sleep(max(0.0, launched.finish_s - self._clock()))
        return launched.logits

    def _labels(self, slots: Sequence[np.ndarray]) -> np.ndarray:
        """Return a label (B,) for each sample."""
        rows = [slot.reshape(len(slot), -1) for slot in slots]
        if self.sample.is_text:  # of several lengths
            sums = np.concatenate([row.sum(axis=1, dtype=np.int64) for row in rows])
        else:  # one sum for all: those of small samples cost more than the rest of a batch
            sums = np.concatenate(rows).sum(axis=1, dtype=np.int64)
        return sums % self.num_classes

    def warm_up(self) -> None:
        """Warm up what computes the outputs, if anything does."""
        if self._outputs is not None:
            self._outputs.warm_up()

    def counts(self) -> Mapping[str, int]:
        """See `Executor`: nothing is held."""
        return NO_CACHE

    def close(self) -> None:
        """Release what computes the outputs, if anything does."""
        if self._outputs is not None:
            self._outputs.close()
