"""`make_long_plan`: the plan of a trace that does not fit in memory, such as a day at 6,400/s.

Successive halving over trace length: all candidates on the busiest minutes, which fit; the three
cheapest of those on the whole trace, hour by hour; what is left on the other seeds. So a candidate
that is dear on the busiest minutes and cheap over the day is overlooked. Headroom, neighbours and
what else asks for dozens of runs is answered on the busiest minutes, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from slackfit.profile import LatencyProfile
from traces.planning.answers import day_rows, headroom, load_curve, neighbours, routings, zoo
from traces.planning.candidates import candidates
from traces.planning.catalog import Catalog
from traces.planning.certificate import Certificate, by_mean_rate
from traces.planning.hours import (
    HOUR_S,
    Fielded,
    HourlyTrials,
    busiest_first,
    check_compiled,
    check_streamable,
    num_hours,
)
from traces.planning.planner import (
    PlanOptions,
    allowed_devices,
    bound_of,
    common_json,
    fleet_json,
    possible_offers,
)
from traces.planning.promise import Promise
from traces.planning.search import MOST_DEVICES, NUM_FINALISTS, Fleet, FleetSearch, Task, Tell
from traces.planning.traffic import Traffic
from traces.planning.trial import Trial
from traces.spec.streamed import PieceSource
from traces.trace import TraceError

_BUSIEST = 1_000_000  # queries of the busiest minutes
_OF_AN_HOUR = 200_000


def make_long_plan(
    sources: Mapping[int, PieceSource],
    slo_s: float | None,
    catalog: Catalog,
    promise: Promise,
    options: PlanOptions,
    tell: Tell = lambda text: None,
    *,
    processes: int | None = None,
) -> dict[str, Any]:
    """Return the plan of the first of `sources`, by seed, that all the others keep too.

    The plan has the keys of `make_plan`, and `answers_of`, which says what headroom and the like
    are of. Raises TraceError as `make_plan`, and for what only whole traces can be planned with.
    """
    source = sources[options.seed]
    if slo_s is None:
        raise TraceError("a streamed trace carries no deadlines; give an SLO (--slo-ms)")
    check_streamable(promise, options.routings)
    task = _busiest_task(source, slo_s, promise, options)
    possible = possible_offers(catalog, promise, task.traffic)
    tried = candidates(possible, options.policies, promise, slo_s, options.routings)
    check_compiled(tried, options.devices)
    search = FleetSearch(task, tell)
    found = search.run(tried)
    busiest = f"the busiest {task.traffic.duration_s:.0f} s"
    tell(f"{busiest}: {len(found.fleets)} of {len(tried)} candidates")
    finalists = [Fielded(f.candidate, f.workers) for f in found.fleets]
    finalists = (finalists or [Fielded(c, task.most(c)) for c in tried])[:NUM_FINALISTS]
    with HourlyTrials(slo_s, promise, options.devices, processes=processes) as trials:
        tell("counting what arrives")
        count, length_s = trials.num_queries(source), source.duration_s + slo_s
        certificates = {
            o.name: _certificate(o.profile, count, length_s, promise) for o in possible.offers
        }
        day = LongSearch(trials, source, task, certificates, tell)
        fleets, seeds = day.on_all_seeds(day.finals(finalists), sources)
    common = common_json(
        promise, options, possible, slo_s, _trace_json(source, count),
        {name: c.to_json() for name, c in certificates.items()}, found.dropped,
    )  # fmt: skip
    common |= {
        "certificate_cost": min(
            o.price_per_hour * certificates[o.name].workers for o in possible.offers
        ),
        "certificate_of": bound_of(catalog),
        "mixed": False,
    }
    if not fleets:
        least = min(c.workers for c in certificates.values())
        return {**common, **_saturated(least, len(finalists), catalog, possible, options)}
    return {
        **common,
        **fleet_json(fleets[0]),
        "certificate_workers": certificates[fleets[0].candidate.offer.name].workers,
        "runner_up": fleet_json(fleets[1]) if len(fleets) > 1 else None,
        "seeds": seeds,
        **_answers(fleets[0], search, source, options),
        "num_hours_served": trials.num_runs,
    }


def _busiest_task(
    source: PieceSource, slo_s: float, promise: Promise, options: PlanOptions
) -> Task:
    """Return what to search for on the busiest minutes."""
    part = _minutes(source, _BUSIEST, busiest_first(source)[0])
    return Task(
        replace(part, slo_s=slo_s, min_accuracy=promise.floor), promise, options.confidence,
        options.max_devices or MOST_DEVICES, options.devices, options.seed,
    )  # fmt: skip


def _saturated(
    least: int, num_finalists: int, catalog: Catalog, possible: Catalog, options: PlanOptions
) -> dict[str, Any]:
    """Return what a plan says where no finalist keeps the promise; `least` devices any has."""
    allowed = allowed_devices(options.max_devices, possible.offers)
    of_one_type = "" if len(catalog.offers) == 1 else " of one type"
    why = (
        f"none of the {num_finalists} best candidates keeps the promise with up to {allowed}; "
        f"any policy needs {least}{of_one_type}"
    )
    return {"saturated": True, "why": why, "certificate_workers": least}


def _answers(
    best: Fleet, search: FleetSearch, source: PieceSource, options: PlanOptions
) -> dict[str, Any]:
    """Return what else is asked about a fleet, by the busiest minutes, which `search` is of."""
    task = search.task
    # On the busiest minutes the fleet may do worse than over the day: answers are relative there.
    there = search.fewest(best.candidate) or best
    length_s = task.traffic.duration_s
    return {
        "answers_of": f"the busiest {length_s:.0f} s, where it takes {there.workers}",
        "headroom": headroom(there, task),
        "load_curve": load_curve(there, task),
        "neighbours": neighbours([there], there, task),
        "routings": routings(there, options.routings, task),
        "day": day_rows(best, [_hour(source, h, task) for h in range(num_hours(source))], task),
        "zoo": zoo(there, task),
        "saturated": False,
        "simulated_by": "compiled",
        "num_trials": search.num_trials,
    }


class LongSearch:
    """Finds how few devices of a finalist keep the promise on the whole trace."""

    def __init__(
        self,
        trials: HourlyTrials,
        source: PieceSource,
        task: Task,
        certificates: Mapping[str, Certificate],
        tell: Tell,
    ) -> None:
        """Search `source` for the promise of `task`, whose traffic is only a part of it."""
        self._trials = trials
        self._source = source
        self._task = task
        self._certificates = certificates
        self._tell = tell

    def finals(self, finalists: Sequence[Fielded]) -> list[Fleet]:
        """Return the smallest fleet of each finalist, cheapest first; those that none keeps lack.

        Each round all that is still open is asked at once, so that arrivals are drawn once for all:
        first one less than the busiest minutes took, since a fleet that is too small ends early.
        """
        open_ = {
            f.candidate: _Bracket(
                too_few=self._certificates[f.candidate.offer.name].workers - 1,
                most=self._task.most(f.candidate), guess=f.workers,
            )
            for f in finalists
        }  # fmt: skip
        while True:
            counts = {c: bracket.count for c, bracket in open_.items()}
            asked = [Fielded(c, n) for c, n in counts.items() if n is not None]
            if not asked:
                break
            self._tell(
                "the whole trace: " + ", ".join(f"{a.workers} x {a.candidate}" for a in asked)
            )
            found = self._trials.run(self._source, asked, self._task.seed)
            for fielded, trial in zip(asked, found, strict=True):
                fleet = Fleet(fielded.candidate, fielded.workers, trial)
                open_[fielded.candidate].note(
                    fleet if self._keeps(fleet) else None, fielded.workers
                )
        return _cheapest_first([b.best for b in open_.values() if b.best is not None])

    def on_all_seeds(
        self, fleets: Sequence[Fleet], sources: Mapping[int, PieceSource]
    ) -> tuple[list[Fleet], list[dict[str, Any]]]:
        """Return the fleets, the first of which keeps the promise on all sources, and its seeds.

        The cheapest is asked, seed by seed, and grows by a device where it misses; so dearer ones
        are asked only once it has become as dear. A fleet that has grown is not asked again on the
        seeds before: more devices never keep a promise less, and what is told of those is of the
        smaller one.
        """
        own = self._task.seed
        told = {f.candidate: {own: f.trial} for f in fleets}
        open_ = _cheapest_first(fleets)
        while open_:
            fleet = open_[0]
            known = told[fleet.candidate]
            seed = next((seed for seed in sources if seed not in known), None)
            if seed is None:
                rows = [
                    {"seed": seed, "attainment": t.attainment, "accuracy": t.accuracy}
                    for seed, t in known.items()
                ]
                return open_, rows
            self._tell(f"seed {seed}: {fleet.workers} x {fleet.candidate}")
            trial = self._trial(fleet, sources[seed], seed)
            if self._keeps(fleet._replace(trial=trial)):
                known[seed] = trial
                continue
            del open_[0]
            grown = fleet._replace(workers=fleet.workers + 1)
            if grown.workers <= self._task.most(fleet.candidate):
                known[own] = self._trial(grown, sources[own], own)
                open_ = _cheapest_first([*open_, grown._replace(trial=known[own])])
        return [], []

    def _trial(self, fleet: Fleet, source: PieceSource, seed: int) -> Trial:
        asked = [Fielded(fleet.candidate, fleet.workers)]
        return self._trials.run(source, asked, seed)[0]

    def _keeps(self, fleet: Fleet) -> bool:
        promise, confidence = self._task.promise, self._task.confidence
        return fleet.trial.keeps(promise) and (
            confidence == 0 or fleet.trial.share_kept(promise) >= confidence
        )


class _Bracket:
    """Between how many devices the smallest number lies that keeps the promise."""

    def __init__(self, too_few: int, most: int, guess: int) -> None:
        self._too_few = min(too_few, most)
        self._most = most
        self._next = min(max(guess - 1, self._too_few + 1), most)
        self._step = 1
        self.best: Fleet | None = None

    @property
    def count(self) -> int | None:
        """The number to ask next; None where the smallest is known, or none does."""
        if self.best is None:
            return self._next if self._too_few < self._most else None
        middle = (self._too_few + self.best.workers) // 2
        return middle if middle > self._too_few else None

    def note(self, fleet: Fleet | None, count: int) -> None:
        """Take the answer to one number: the fleet if it keeps the promise."""
        if fleet is not None:
            self.best = fleet
            return
        self._too_few = count
        self._next = min(count + self._step, self._most)
        self._step *= 2


def _cheapest_first(fleets: Sequence[Fleet]) -> list[Fleet]:
    return sorted(fleets, key=lambda f: (f.cost, -f.trial.accuracy, str(f.candidate)))


def _minutes(source: PieceSource, most_queries: int, hour: int) -> Traffic:
    """Return the busiest stretch of an hour of so many queries: pieces one after the other."""
    pieces = source.between(hour * HOUR_S, (hour + 1) * HOUR_S)
    rates = np.full(len(pieces), source.expected_qps)
    if source.rates_qps is not None:
        rates = source.rates_qps[pieces.start : pieces.stop]
    piece_s = source.bin_s / source.parts
    per_stretch = int(np.clip(most_queries / max(rates.max() * piece_s, 1e-9), 1, len(pieces)))
    sums = np.convolve(rates, np.ones(per_stretch), mode="valid")
    first = pieces.start + int(np.argmax(sums))
    begin_s = source.begin_s(first)
    end_s = min(source.begin_s(first + per_stretch), source.duration_s)
    arrival_s = np.concatenate([source.piece(first + k) for k in range(per_stretch)]) - begin_s
    return Traffic(arrival_s, end_s - begin_s, np.inf)


def _hour(source: PieceSource, hour: int, task: Task) -> Traffic:
    part = _minutes(source, _OF_AN_HOUR, hour)
    return replace(part, slo_s=task.traffic.slo_s, min_accuracy=task.promise.floor)


def _certificate(
    profile: LatencyProfile, count: int, length_s: float, promise: Promise
) -> Certificate:
    """Return the bound by mean rate of so many queries, all of which end within `length_s`."""
    return Certificate(by_mean_rate(profile, count, length_s, promise), 1, 1)


def _trace_json(source: PieceSource, count: int) -> dict[str, Any]:
    return {
        "num_queries": count,
        "duration_s": source.duration_s,
        "rate_qps": count / source.duration_s,
        "spec": source.spec,
        "synthetic": True,
        "streamed": True,
    }
