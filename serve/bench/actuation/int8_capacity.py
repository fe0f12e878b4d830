"""The capacity part of `supernet bench actuation`: what the int8 axis is worth, in virtual time.

A measured profile with every subnet in fp32 and int8 is simulated with all its entries (on), and
with the fp32 ones (off), under traffic that is as bursty as ours always is. Capacity is the highest
rate at which 0.999 of the deadlines are met; on is asked, besides, for the accuracy that fp32 has
left at its own capacity. Deadlines are ten times the largest int8 subnet's batch 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from serve.bench.rows import Row, Tell, row
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile
from slackfit.simulation.simulate import simulate
from supernet.served_form import ServedForm
from traces.spec.spec import parse_spec
from traces.trace import Trace

POLICIES = ("slackfit", "drainfit")
_ATTAINMENT = 0.999
_STEP, _STEPS = 1.05, 150  # down to a fifteen-hundredth
_CV2 = 8.0
_SLO_FACTOR = 10.0
QUERIES = 20_000


class Served(NamedTuple):
    """What a rate came to: the share of deadlines met, and the mean accuracy of those answers."""

    rate_qps: float
    attainment: float
    accuracy: float


def capacity_rows(
    net: str, profile: LatencyProfile, *, queries: int = QUERIES, tell: Tell = print
) -> list[Row]:
    """Simulate each policy with int8 on and off: a row for the ratio of rates, and two more.

    They say what int8 does at the rate that is fp32's capacity, which it need not meet better.
    """
    off = profile.select(_in(profile, "fp32"))
    slo_s = _SLO_FACTOR * max(profile.latency_s(i, 1) for i in _in(profile, "int8"))
    trace = _trace(profile, queries)
    rows: list[Row] = []
    for policy in POLICIES:
        sweep_off, sweep_on = (RateSweep(trace, each, policy, slo_s) for each in (off, profile))
        fp32 = sweep_off.capacity(0.0)
        both, there = sweep_on.capacity(fp32.accuracy), sweep_on.at(fp32.rate_qps)
        detail = (
            f"simulated, {policy}, one device, CV^2 {_CV2:g}, SLO {slo_s * 1e3:.0f} ms, {queries} "
            f"queries, attainment {_ATTAINMENT:g}: {both.rate_qps:.1f} queries/s at an accuracy of "
            f"{both.accuracy:.4f} against {fp32.rate_qps:.1f} at {fp32.accuracy:.4f}; "
            f"{profile.source}"
        )
        at_that_rate = f"int8 on at {fp32.rate_qps:.1f} queries/s"
        figure = f"actuation/{net}/capacity/{policy}"
        rows += [
            row(f"{figure}/int8_on_over_off", both.rate_qps / fp32.rate_qps, "ratio", detail),
            row(f"{figure}/attainment_at_capacity_of_off", there.attainment, "fraction",
                at_that_rate),
            row(f"{figure}/accuracy_gained_at_capacity_of_off", there.accuracy - fp32.accuracy,
                "fraction", at_that_rate),
        ]  # fmt: skip
        tell(f"  {net} capacity, {policy}: int8 on over off {rows[-3]['value']:.2f}")
    return rows


class RateSweep:
    """A profile's traffic at falling rates, each simulated when it is first asked for.

    From the top, since attainment need not fall with the rate: on a quiet server a policy takes
    the longest batches, which a burst then has to wait for.
    """

    def __init__(self, trace: Trace, profile: LatencyProfile, policy: str, slo_s: float):
        self._trace = trace
        self._profile = profile
        self._policy = create_policy(policy, profile)
        self._slo_s = slo_s
        self._served: list[Served] = []

    def capacity(self, floor: float) -> Served:
        """Return the highest rate that meets the goal with at least the accuracy `floor`.

        Raises ValueError where none does.
        """
        for number in range(_STEPS):
            if number == len(self._served):
                self._served.append(self.at(self._trace.rate_qps * _STEP**-number))
            served = self._served[number]
            if served.attainment >= _ATTAINMENT and served.accuracy >= floor:
                return served
        raise ValueError(
            f"no rate down to {self._served[-1].rate_qps:.3g} queries/s meets {_ATTAINMENT:g} of "
            f"the deadlines at an accuracy of {floor:.4f}"
        )

    def at(self, rate_qps: float) -> Served:
        """Return what a rate comes to."""
        outcomes = simulate(
            self._trace.rescale_rate(rate_qps).arrival_s,
            self._profile,
            self._policy,
            slo_s=self._slo_s,
            num_workers=1,
        )
        on_time = [o.accuracy for o in outcomes if o.status == "on_time"]
        accuracy = float(np.mean(on_time)) if on_time else 0.0
        return Served(rate_qps, len(on_time) / len(outcomes), accuracy)


def _in(profile: LatencyProfile, precision: str) -> list[str]:
    return [i for i in profile.subnet_ids if ServedForm.parse(i).precision == precision]


def _trace(profile: LatencyProfile, queries: int) -> Trace:
    """Return traffic at what the fastest subnet does flat out."""
    size = profile.max_batch_size
    rate_qps = size / min(profile.latency_s(i, size) for i in profile.subnet_ids)
    return parse_spec(f"gamma:rate={rate_qps},cv2={_CV2:g},duration={queries / rate_qps}", seed=0)
