"""Finalists on other draws of the same traffic: a plan must not hang on the luck of one seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from traces.planning.search import NUM_FINALISTS, Fleet, Task, Tell
from traces.planning.traffic import Traffic
from traces.planning.trial import run_trial


def kept_on_all(
    fleets: Sequence[Fleet], task: Task, draws: Mapping[int, Traffic], tell: Tell
) -> list[Fleet]:
    """Return the first three of `fleets` with as many devices as keep the promise on all draws.

    `draws` are by seed, beside the task's own. A fleet that no allowed number of devices mends is
    left out; the others come cheapest first, their trials on the task's own traffic.
    """
    found: list[Fleet] = []
    for fleet in fleets[:NUM_FINALISTS]:
        grown = _grown(fleet, task, draws)
        if grown is None:
            tell(f"{fleet.candidate}: misses the promise on other seeds with any allowed number")
            continue
        found.append(grown)
        tell(f"{grown.candidate}: {grown.workers} devices on {len(draws) + 1} seeds")
    return sorted(found, key=lambda f: (f.cost, -f.trial.accuracy, str(f.candidate)))


def by_seed(fleet: Fleet, task: Task, draws: Mapping[int, Traffic]) -> list[dict[str, Any]]:
    """Return a fleet's attainment and accuracy on each draw, the task's own first."""
    rows: list[dict[str, Any]] = []
    for seed, traffic in {task.seed: task.traffic, **draws}.items():
        trial = run_trial(
            fleet.candidate, fleet.workers, traffic, devices=task.devices, seed=seed
        )  # fmt: skip
        rows.append({"seed": seed, "attainment": trial.attainment, "accuracy": trial.accuracy})
    return rows


def _grown(fleet: Fleet, task: Task, draws: Mapping[int, Traffic]) -> Fleet | None:
    for count in range(fleet.workers, task.most(fleet.candidate) + 1):
        if all(_keeps(fleet, count, replace(task, traffic=t, seed=s)) for s, t in draws.items()):
            if count == fleet.workers:
                return fleet
            own = run_trial(
                fleet.candidate, count, task.traffic, devices=task.devices, seed=task.seed
            )  # fmt: skip
            if own.keeps(task.promise):
                return Fleet(fleet.candidate, count, own)
    return None


def _keeps(fleet: Fleet, count: int, task: Task) -> bool:
    trial = run_trial(
        fleet.candidate, count, task.traffic, promise=task.promise, devices=task.devices,
        seed=task.seed,
    )  # fmt: skip
    return trial.keeps(task.promise)
