"""A policy as arrays, for machine code: `StepForm` by asking it, `DrainForm` by its own tables.

A `StepPolicy` is laid out by calling its own `decide` once per step, so that nothing describes it a
second time. DrainFit's form holds the arrays that DrainFit itself works with; its rules are in
`drainfit_kernel`. Other policies have no form and run in Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Any, NamedTuple, Protocol

import numpy as np

from slackfit.policies.drainfit import DrainFit
from slackfit.policy import ALONE, Policy, StepPolicy, WorkerView
from slackfit.profile import LatencyProfile
from slackfit.query import Query


class Cells(Protocol):
    """An array as kernels use one: read and written in single places, by numbers."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, at: Any, /) -> Any: ...
    def __setitem__(self, at: Any, value: Any, /) -> None: ...


Floats = Cells
"""float64"""
Ints = Cells
"""int64, where nothing else is said"""


class StepForm(NamedTuple):
    """Decisions by key and step; a key is (waiting, floor, loaded subnet), the last fastest.

    `limits_s` (L) ascend; `subnet` and `size` are (keys, L + 1).
    """

    limits_s: Floats
    closed: bool
    most_waiting: int
    num_floors: int
    num_loaded: int
    subnet: Ints
    size: Ints


class DrainForm(NamedTuple):
    """DrainFit's tables by (batch size, place on the Pareto front), and its parameters."""

    latency_s: Floats
    per_query_s: Floats
    full_s: Floats
    steps_s: Floats
    rows_s: Floats  # by (subnet, batch size)
    subnet: Ints  # of each place
    place: Ints  # of the least accurate that a floor (the index of a subnet) allows
    lead_s: float
    longest_slo_s: float
    reserve: float
    expect: float


class PolicyForm(NamedTuple):
    """One of the two; the other is an empty one."""

    is_drain: bool
    step: StepForm
    drain: DrainForm


_NONE = np.zeros(1)
_NONE_2D = np.zeros((1, 1))
_NO_STEP = StepForm(_NONE, False, 1, 1, 1, np.zeros((1, 1), np.int64), np.ones((1, 1), np.int64))
_NO_DRAIN = DrainForm(
    _NONE_2D, _NONE_2D, _NONE, _NONE, _NONE_2D, np.zeros(1, np.int64), np.zeros(1, np.int64),
    0.0, 0.0, 0.0, 0.0,
)  # fmt: skip


def lacking(policy: Policy) -> str:
    """Return why a policy has no compiled form, as a sentence; empty where it has one."""
    if type(policy) is DrainFit or isinstance(policy, StepPolicy):
        return ""
    return f"policy {policy.name!r} has no compiled form"


def policy_form(policy: Policy, profile: LatencyProfile, *, has_floors: bool) -> PolicyForm:
    """Return the form of a policy that is not `lacking` one, serving `profile`."""
    if isinstance(policy, DrainFit):
        return PolicyForm(True, _NO_STEP, _drain_form(policy, profile))
    assert isinstance(policy, StepPolicy), "it lacks no form"
    return PolicyForm(False, _step_form(policy, profile, has_floors=has_floors), _NO_DRAIN)


class _ProbeView:
    """A queue of `num_waiting` queries like `query`, as a policy sees it; it is both."""

    def __init__(self, profile: LatencyProfile, query: Query, num_waiting: int, last: str | None):
        self.profile = profile
        self.memo = None
        self.wishes = ()
        self.others = ALONE
        self.tightest_slo_s = inf
        self.worker = WorkerView(0, 0.0, last)
        self.workers = (self.worker,)
        self._query = query
        self._num_waiting = num_waiting

    @property
    def queue(self) -> _ProbeView:
        return self

    def __len__(self) -> int:
        return self._num_waiting

    def head(self) -> Query:
        return self._query

    def count_due(self, deadline_s: float) -> int:
        return self._num_waiting if deadline_s >= self._query.deadline_s else 0

    def earliest(self, count: int) -> Iterator[Query]:
        return iter([self._query] * min(count, self._num_waiting))

    def arrivals_within(self, window_s: float) -> int:
        return 0


def _step_form(policy: StepPolicy, profile: LatencyProfile, *, has_floors: bool) -> StepForm:
    steps = policy.steps
    limits = sorted(set(steps.limits_s))
    # One slack of each step: a limit itself, and one beyond all of them.
    slacks = [-inf, *limits] if steps.closed else [*limits, inf]
    number = {subnet_id: i for i, subnet_id in enumerate(profile.subnet_ids)}
    floors = [s.accuracy for s in profile.subnets] if has_floors and steps.uses_floor else [0.0]
    floors[0] = 0.0
    loaded = [None, *profile.subnet_ids] if steps.uses_loaded else [None]
    keys = [
        (waiting, floor, last)
        for waiting in range(1, steps.most_waiting + 1)
        for floor in floors
        for last in loaded
    ]
    subnet = np.zeros((len(keys), len(slacks)), dtype=np.int64)
    size = np.zeros((len(keys), len(slacks)), dtype=np.int64)
    for i, (waiting, floor, last) in enumerate(keys):
        for j, slack_s in enumerate(slacks):
            view = _ProbeView(profile, Query(0, -1.0, slack_s, floor), waiting, last)
            decision = policy.decide(view, 0.0)
            assert decision is not None, "a step policy never waits"
            subnet[i, j], size[i, j] = number[decision.subnet_id], decision.batch_size
    return StepForm(
        np.array(limits or [inf]),
        steps.closed,
        steps.most_waiting,
        len(floors),
        len(loaded),
        subnet if limits else np.repeat(subnet, 2, axis=1),
        size if limits else np.repeat(size, 2, axis=1),
    )


def _drain_form(policy: DrainFit, profile: LatencyProfile) -> DrainForm:
    tables = policy.tables(profile)
    number = {subnet_id: i for i, subnet_id in enumerate(profile.subnet_ids)}
    accuracies = np.array(tables.accuracies)
    floors = np.array([subnet.accuracy for subnet in profile.subnets])
    return DrainForm(
        latency_s=np.array(tables.latency_s),
        per_query_s=np.array(tables.per_query_s),
        full_s=np.array(tables.full_s),
        steps_s=np.array(tables.steps_s),
        rows_s=np.array([tables.rows[i] for i in profile.subnet_ids]),
        subnet=np.array([number[i] for i in tables.subnet_ids], dtype=np.int64),
        place=np.searchsorted(accuracies, floors, side="left").astype(np.int64),
        lead_s=tables.lead_s,
        longest_slo_s=tables.longest_slo_s,
        reserve=policy.reserve,
        expect=policy.expect,
    )
