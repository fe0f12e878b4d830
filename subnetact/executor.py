"""`Executor`: the protocol of what runs one batch on one subnet, whichever the device.

Samples are staged when they arrive, launched when they are chosen, and waited for last; on a CPU
`launch` computes and `result` hands over, on a device that computes by itself (`num_under_way`) the
next batch may be launched in between. What a slot and a launched batch are is the executor's
own business: who passes them on never looks inside. Which subnet and which samples is the
scheduler's. Implementations: `views.eager_executor`, `cpu.graph_executor`, `cuda.cuda_executor`
and `timed_executor`; `load.load_executor` chooses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from slackfit.errand import Errand
from slackfit.profile import LatencyProfile
from supernet.sample import SampleSpec

Slot = Any


class Launched(Protocol):
    """A batch under way, or done where `launch` computes; `form` says in which form it ran."""

    @property
    def form(self) -> str: ...


class HostLaunched(NamedTuple):
    """A batch that was computed at its launch: (B, num_classes) logits, and the form it ran in."""

    logits: np.ndarray
    form: str


CACHE_COUNTS = ("hits", "misses", "loads", "evictions", "held_bytes")
NO_CACHE: Mapping[str, int] = dict.fromkeys(CACHE_COUNTS, 0)


class Background(Protocol):
    """What an executor does while no query needs it, and what that changes in the plans.

    Used by the thread that launches, between two batches.
    """

    @property
    def version(self) -> int:
        """Goes up with every change of what `planned` returns."""
        ...

    def planned(self, profile: LatencyProfile, errand: Errand | None = None) -> LatencyProfile:
        """Return what batches take as things are, or right after an errand.

        `profile` has what was measured, of all or some of the subnets.
        """
        ...

    def next_errand(self) -> Errand | None:
        """What is to be done next; None: nothing now."""
        ...

    def run_errand(self) -> None:
        """Do what `next_errand` said. Fails for nobody: what can't be done is left."""
        ...


class Executor(Protocol):
    """What a server needs of a device.

    It may have a `background` besides (`StagingExecutor`).
    """

    @property
    def device(self) -> str: ...

    @property
    def threads(self) -> int | None: ...

    @property
    def dtype(self) -> str:
        """What is computed in, `float32` for instance."""
        ...

    @property
    def details(self) -> str:
        """What a profile should say besides; may be empty."""
        ...

    @property
    def packing(self) -> str:
        """In which form weights are read: `views`, or what the profile should say instead."""
        ...

    @property
    def sample(self) -> SampleSpec: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def subnet_ids(self) -> tuple[str, ...]: ...

    @property
    def max_batch_size(self) -> int: ...

    @property
    def num_under_way(self) -> int:
        """How many batches may have been launched whose results were not taken yet.

        1: `launch` computes, or nothing is gained by launching ahead. More: batches run one behind
        the other while the host does something else; results are taken in the order of launches.
        """
        ...

    def stage(self, payload: np.ndarray) -> Slot:
        """Take samples (n, ...) that wait for a batch; from any thread, and never for long.

        Raises ValueError for a type, shape or number that the network does not take.
        """
        ...

    def launch(self, subnet_id: str, slots: Sequence[Slot]) -> Any:
        """Start the samples of `slots` as one batch on a subnet.

        Raises KeyError for an unknown subnet, ValueError for more samples than `max_batch_size`.
        A slot may be launched again, should its batch have failed. Returns a `Launched`.
        """
        ...

    def result(self, launched: Any) -> np.ndarray:
        """Wait for a batch; float32 (B, num_classes) logits in the order of its slots. Once."""
        ...

    def run(self, subnet_id: str, samples: np.ndarray) -> np.ndarray:
        """Run samples (B, ...) alone and at once: `stage`, `launch` and `result` in one."""
        ...

    def warm_up(self) -> None:
        """Run every subnet once or more, so that the first query is as fast as the others."""
        ...

    def counts(self) -> Mapping[str, int]:
        """What the device did so far and holds now, by names fit for metrics.

        At least `CACHE_COUNTS`: how often what a batch needed was resident (`hits`) or not
        (`misses`), what was made resident (`loads`) and given up (`evictions`), and the bytes that
        are held so (`held_bytes`).
        """
        ...

    def close(self) -> None:
        """Release the device."""
        ...


class StagingExecutor(ABC):
    """What executors have in common: samples are staged as they are, once they are checked."""

    sample: SampleSpec
    num_under_way = 1
    is_padded = False
    """Whether a batch between two profiled sizes is filled up to the next one."""

    @property
    def background(self) -> Background | None:
        """What is to be done between batches, if anything."""
        return None

    @abstractmethod
    def launch(self, subnet_id: str, slots: Sequence[Slot]) -> Any:
        """See `Executor`."""

    @abstractmethod
    def result(self, launched: Any) -> np.ndarray:
        """See `Executor`."""

    def stage(self, payload: np.ndarray) -> np.ndarray:
        """See `Executor`: the checked samples, on the host."""
        return self.sample.checked(payload)

    def run(self, subnet_id: str, samples: np.ndarray) -> np.ndarray:
        """Run samples (B, ...) on a subnet, return (B, num_classes) float32 logits.

        Raises what `stage` and `launch` raise.
        """
        return self.result(self.launch(subnet_id, [self.stage(samples)]))


def warm_up(executor: Executor) -> None:
    """Run every subnet at the largest and the smallest batch size."""
    for batch_size in (executor.max_batch_size, 1):
        for subnet_id in executor.subnet_ids:
            executor.run(subnet_id, executor.sample.zeros(batch_size))


def check_batch(count: int, max_batch_size: int) -> None:
    """Raise ValueError unless a batch has 1 to `max_batch_size` samples."""
    if not 1 <= count <= max_batch_size:
        raise ValueError(f"the batch has {count} samples, allowed 1 to {max_batch_size}")
