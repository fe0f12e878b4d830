"""What batches take; the machine code of `slackfit.simulation.devices`."""

from __future__ import annotations

import numpy as np

from slackfit.compiled.forms import Floats
from slackfit.compiled.jit import inlined
from slackfit.compiled.queue_kernel import bisect_right
from slackfit.compiled.state import Hardware, Slots


@inlined
def draw(seed: int, number: int) -> float:
    """Return the random number of a query in [0, 1), as `slackfit.simulation.devices.draw`."""
    word = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
    word += (np.uint64(number) + np.uint64(1)) * np.uint64(0xD1B54A32D192ED03)
    word ^= word >> np.uint64(30)
    word *= np.uint64(0xBF58476D1CE4E5B9)
    word ^= word >> np.uint64(27)
    word *= np.uint64(0x94D049BB133111EB)
    word ^= word >> np.uint64(31)
    return (word >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@inlined
def _quantile_ratio(levels: Floats, noise_s: Floats, subnet: int, size: int, drawn: float) -> float:
    at = bisect_right(levels, drawn, 0, len(levels))
    if at == 0:
        return 1.0
    median_s = noise_s[0, subnet, size]
    low_s = noise_s[at - 1, subnet, size]
    if at == len(levels):
        return low_s / median_s
    high_s = noise_s[at, subnet, size]
    share = (drawn - levels[at - 1]) / (levels[at] - levels[at - 1])
    return (low_s + (high_s - low_s) * share) / median_s


@inlined
def batch_s(
    hardware: Hardware, slots: Slots, worker: int, subnet: int, size: int, seconds: float
) -> float:
    """Return what the batch of a worker takes that was predicted to take `seconds`."""
    if len(hardware.tables_s) > 0:
        seconds = hardware.tables_s[worker, subnet, size]
    if len(hardware.residuals) > 0:
        drawn = draw(hardware.seed, slots.numbers[worker, 0])
        seconds *= hardware.residuals[int(drawn * len(hardware.residuals))]
    elif len(hardware.levels) > 0:
        drawn = draw(hardware.seed, slots.numbers[worker, 0])
        seconds *= _quantile_ratio(hardware.levels, hardware.noise_s, subnet, size, drawn)
    seconds = seconds * slots.factor[worker] + hardware.overhead_s
    if len(hardware.switch_s) > 0:
        last = slots.has_run[worker]
        slots.has_run[worker] = subnet
        if last >= 0 and last != subnet:
            seconds += hardware.switch_s[subnet]
    return seconds
