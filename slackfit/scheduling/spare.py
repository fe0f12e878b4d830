"""Whether a worker that has nothing to do has time for an errand: a rule for between two batches.

An errand (`slackfit.errand`) makes later batches faster and nobody waits for it, so it is done only
when, as predicted, nobody will have waited for it either.
"""

from __future__ import annotations

from math import ceil

from slackfit.errand import Errand
from slackfit.fastest import FastestBatches
from slackfit.policy import DeviceLoad
from slackfit.scheduling.decide import SchedulerView

_SHARE = 0.5  # of the tightest SLO: the rest is for bursts, which a mean rate does not foretell
_BUSY = 0.7  # of what the worker can do, where an errand leaves it slower than it was


def has_time(
    errand: Errand, fastest: FastestBatches, view: SchedulerView, now_s: float, others: DeviceLoad
) -> bool:
    """Whether an errand costs no query its deadline, where none waits.

    Those that should come meanwhile, at the rate of the last second and one more, are served behind
    it on the fastest subnets (`fastest`: as batches run after the errand), and so are those of the
    other models; all that has to end within half of the tightest SLO that was seen lately.
    """
    rate_qps = view.rate_qps(now_s)
    if errand.slows and rate_qps > _BUSY * fastest.capacity_qps * others.left:
        return False
    arriving = ceil(rate_qps * errand.takes_s) + 1
    others_s = others.waiting_s + others.arriving * errand.takes_s
    needed_s = errand.takes_s + fastest.duration_s(arriving) + others_s
    return needed_s <= _SHARE * min(view.tightest_slo_s, others.slo_s)
