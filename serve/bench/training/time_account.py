"""How many steps a case's next run gets, so that all cases take the processor time of one.

What a step costs is told by the case's own runs so far, those that tuned its rate first. Each run
gets what its case has left of the time that the reference's runs took up to the same seed: where a
busier machine made a run dearer than it was to be, the next one is as much shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class SpentTime(NamedTuple):
    """A run that is over: its processor time (s), and the steps that it was given."""

    cpu_s: float
    steps: int


def step_cost_s(runs: Sequence[SpentTime], otherwise_s: float) -> float:
    """Return the processor time of a step over all runs (s), `otherwise_s` where there is none."""
    steps = sum(run.steps for run in runs)
    return sum(run.cpu_s for run in runs) / steps if steps else otherwise_s


def steps_for(step_s: float, *, aimed_s: Sequence[float], spent_s: Sequence[float]) -> int:
    """Return the steps of a case's next run, of which one takes `step_s`.

    `aimed_s` are the times of the reference's runs up to the same seed, `spent_s` those of the
    case's runs before it (s). No run is shorter than half of what it would have by itself, nor
    longer than twice that.

    >>> steps_for(0.5, aimed_s=[100.0, 100.0], spent_s=[90.0])
    220
    """
    alone = aimed_s[-1] / step_s
    left = (sum(aimed_s) - sum(spent_s)) / step_s
    return max(1, round(min(max(left, alone / 2), 2 * alone)))
