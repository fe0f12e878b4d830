"""Plans on odd hours, judged on even ones: is the promise kept there, and at what price?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from serve.bench.policies.superserve_paper import RESNET_SLO_S
from serve.bench.rows import Row, Tell, row
from slackfit.profile import LatencyProfile
from traces.planning.candidates import FleetCandidate, candidates
from traces.planning.catalog import Catalog, DeviceOffer
from traces.planning.promise import Promise
from traces.planning.search import Fleet, FleetSearch, Task
from traces.planning.traffic import Traffic
from traces.planning.trial import run_trial
from traces.spec.spec import parse_spec

_PARTS = 12  # "hours" of a trace
_POLICIES = ("drainfit", "slackfit")
_SHAPES = (
    "poisson:rate={qps},duration={s}",
    "gamma:rate={qps},cv2=4,duration={s}",
    "gamma:rate={qps},cv2=8,duration={s}",
    "azure2019-shape:qps={qps},duration={s}",
)
_RATES_QPS = (2500.0, 5000.0, 7500.0, 10_000.0, 12_500.0)
_PROMISES = (Promise(0.999, 0.775), Promise(0.99, 0.78))


def rows(profile: Path, duration_s: float, tell: Tell) -> list[Row]:
    """Return the rows of 40 plans, with and without asking redrawn traces."""
    catalog = Catalog(offers=(DeviceOffer(name="2080ti", profile=LatencyProfile.load(profile)),))
    kept: dict[float, list[bool]] = {0.95: [], 0.0: []}
    times: list[float] = []
    cases = list(_cases(duration_s))
    for at, (spec, promise) in enumerate(cases):
        planned, judged = _odd_and_even(parse_spec(spec, seed=at).arrival_s, duration_s)
        tried = candidates(catalog, _POLICIES, promise, RESNET_SLO_S)
        for confidence, found in kept.items():
            fleet = _cheapest(FleetSearch(Task(planned, promise, confidence)), tried)
            trial = run_trial(fleet.candidate, fleet.workers, judged)
            found.append(trial.keeps(promise))
            if confidence:
                times.append(fleet.cost / _cheapest(FleetSearch(Task(judged, promise)), tried).cost)
        if at % 10 == 9:
            tell(f"plan: {at + 1}/{len(cases)}")
    detail = f"{len(cases)} plans on odd twelfths of {duration_s:g} s, judged on even ones"
    return [
        row("policies/plan/kept", float(np.mean(kept[0.95])), "fraction", f">= 0.95; {detail}"),
        row("policies/plan/times_cheapest", median(times), "ratio", "<= 1.15; the median"),
        row(
            "policies/plan/kept_without_margin", float(np.mean(kept[0.0])), "fraction",
            "the same plans with --confidence 0",
        ),
    ]  # fmt: skip


def _cases(duration_s: float) -> Iterator[tuple[str, Promise]]:
    for shape in _SHAPES:
        for qps in _RATES_QPS:
            for promise in _PROMISES:
                yield shape.format(qps=f"{qps:g}", s=f"{duration_s:g}"), promise


def _cheapest(search: FleetSearch, tried: Sequence[FleetCandidate]) -> Fleet:
    fleets = search.run(tried).fleets
    assert fleets, "with any number of devices the promise is possible"
    return fleets[0]


def _odd_and_even(arrival_s: np.ndarray, duration_s: float) -> tuple[Traffic, Traffic]:
    """Return the odd parts of a trace one after the other, and the even ones."""
    part_s = duration_s / _PARTS
    number = np.minimum((arrival_s / part_s).astype(np.int64), _PARTS - 1)
    moved_s = arrival_s - number * part_s + (number // 2) * part_s
    odd, even = (
        Traffic(moved_s[number % 2 == rest], duration_s / 2, RESNET_SLO_S) for rest in (0, 1)
    )
    return odd, even
