"""`CompiledSession`: a subnet compiled by whichever engine; what a batch is run on."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from statistics import median
from typing import Protocol

import numpy as np

_ROUNDS = 7
_WINS = 0.95  # of the other's time: less is not worth another form of the same numbers


class CompiledSession(Protocol):
    """Runs whole batches, outside the interpreter's lock; from any thread."""

    @property
    def engine(self) -> str:
        """The library that runs it: `onnxruntime` or `openvino`."""
        ...

    def run(self, samples: np.ndarray) -> np.ndarray:
        """Return (B, num_classes) float32 logits of contiguous samples of the graph's type."""
        ...


def is_faster(other: CompiledSession, ours: CompiledSession, batches: Iterable[np.ndarray]) -> bool:
    """Whether `other` takes at most 0.95 of the time of `ours`, in the geometric mean of batches.

    Runs are interleaved; of each batch the median of the rounds' ratios counts.
    """
    ratios = [_ratio(other, ours, batch) for batch in batches]
    return math.prod(ratios) <= _WINS ** len(ratios)


def _ratio(other: CompiledSession, ours: CompiledSession, batch: np.ndarray) -> float:
    rounds = [(_run_s(other, batch), _run_s(ours, batch)) for _ in range(1 + _ROUNDS)]
    return median(a / b for a, b in rounds[1:])


def _run_s(session: CompiledSession, batch: np.ndarray) -> float:
    start_s = time.perf_counter()
    session.run(batch)
    return time.perf_counter() - start_s
