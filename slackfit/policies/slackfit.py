"""SlackFit (SuperServe, NSDI'25, sections 4.2 and A.5): the bucket that the head's slack affords.

Offline the range of profiled latencies is split into evenly spaced buckets, and each keeps its
(subnet, batch size) pair with the largest batch, the more accurate of equals. Online the slack of
the most urgent query chooses a bucket: O(log buckets), nothing else of the queue is looked at.

The two printed descriptions differ in what is held against the slack:
  `pair`    section 4.2: the pair's own latency must be less than the slack;
  `bucket`  section A.5: the bucket's upper edge must be at most the slack, so a pair is passed
            over while its bucket reaches beyond the slack.
The paper leaves open, and we choose: a head that no pair can serve in time gets the largest batch
on the fastest subnet (late heads leave quickly; anything smaller never drains the queue); empty
buckets are left out; subnets that another one beats are left out.

Why 8 buckets. Tried: 4, 8, 10, 20, 40, 80 on the paper's ResNet profile (8 workers, 36 ms, gamma
bursts of CV^2 8, seed 0, 5 s, 4,450 to 13,000 queries/s without overhead, 4,450 and 7,050 with
6 ms). For `pair`, none has a higher attainment x accuracy than 8 in any of the seven cells: wide
buckets leave the large batches, which drain the queue.

More slack never lowers the accuracy when the chosen pairs ascend in accuracy, which is a property
of profile and bucket count, not of the rule: it holds for 1 to 9 buckets on that profile and for
1 to 4 on the DynaBERT one, for both variants. `is_monotone` says so for a given profile.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

from slackfit.policies.grid import Grid
from slackfit.policies.twins import Twins
from slackfit.policy import SlackSteps, View
from slackfit.profile import LatencyProfile
from slackfit.query import Decision

Variant = Literal["pair", "bucket"]


class _Pair(NamedTuple):
    batch_size: int
    accuracy: float
    latency_s: float
    subnet_id: str


class SlackFit:
    """The bucket that the head's slack affords. Keeps hopeless queries by default (the paper)."""

    name = "slackfit"

    def __init__(
        self,
        profile: LatencyProfile,
        *,
        num_buckets: int = 8,
        variant: Variant = "pair",
        quantile: str = "p50",
        drop_hopeless: bool = False,
    ) -> None:
        """Build the buckets of `profile`. Raises ValueError for a bad parameter."""
        if num_buckets < 1:
            raise ValueError(f"num_buckets is {num_buckets}, allowed 1 or more")
        if variant not in get_args(Variant):
            raise ValueError(f"variant is {variant!r}, allowed {', '.join(get_args(Variant))}")
        self.drop_hopeless = drop_hopeless
        self._num_buckets = num_buckets
        self._quantile = quantile
        # The largest limit below the slack, or at most the slack.
        self._bisect = bisect_left if variant == "pair" else bisect_right
        self._variant = variant
        self._twins: Twins[SlackFit] = Twins()
        self.lay_out(profile)

    def decide(self, view: View, now_s: float) -> Decision | None:
        """Choose the pair of the last bucket that fits the head's slack."""
        if view.profile is not self._profile:
            return self._twins.of(self, view.profile).decide(view, now_s)
        slack_s = view.queue.head().deadline_s - now_s
        return self._decisions[self._bisect(self._limits, slack_s)]

    @property
    def steps(self) -> SlackSteps:
        """Where the decisions change."""
        return SlackSteps(tuple(self._limits), closed=self._variant == "bucket")

    @property
    def is_monotone(self) -> bool:
        """Whether, for this profile, more slack never means a less accurate subnet."""
        accuracies = [self._profile.accuracy(d.subnet_id) for d in self._decisions[1:]]
        return accuracies == sorted(accuracies)

    def prepare(self, profile: LatencyProfile) -> None:
        """Lay out now what the first decision on another profile would have to."""
        if profile is not self._profile:
            self._twins.of(self, profile)

    def lay_out(self, profile: LatencyProfile) -> None:
        """Lay out `_decisions[number of limits passed]`; entry 0 is for a hopeless head."""
        self._profile = profile
        buckets = _buckets(profile.pareto(self._quantile), self._num_buckets, self._quantile)
        is_pair = self._variant == "pair"
        self._limits = [pair.latency_s if is_pair else upper_s for upper_s, pair in buckets]
        self._decisions = [Grid(profile, self._quantile).late]
        self._decisions += [Decision(pair.subnet_id, pair.batch_size) for _, pair in buckets]


def _buckets(profile: LatencyProfile, num_buckets: int, quantile: str) -> list[tuple[float, _Pair]]:
    """Return (upper edge, chosen pair) of every bucket that is not empty, ascending."""
    rows = profile.table(quantile)
    pairs = [
        _Pair(b, s.accuracy, rows[s.subnet_id][b], s.subnet_id)
        for s in profile.subnets
        for b in profile.batch_sizes
    ]
    low_s = min(pair.latency_s for pair in pairs)
    high_s = max(pair.latency_s for pair in pairs)
    edges = [low_s + (high_s - low_s) * i / num_buckets for i in range(num_buckets)] + [high_s]
    chosen: list[tuple[float, _Pair]] = []
    for lower_s, upper_s in pairwise([-1.0, *edges]):
        held = [pair for pair in pairs if lower_s < pair.latency_s <= upper_s]
        if held:
            chosen.append((upper_s, max(held)))
    return chosen
