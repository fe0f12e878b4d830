"""The compiled scheduler against the Python one: how much sooner, and whether it is the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from serve.bench.policies.superserve_paper import NUM_WORKERS, RESNET_SLO_S, load_spec
from serve.bench.rows import Row, Tell, row
from slackfit.compiled.code_cache import missing
from slackfit.compiled.simulate import simulate_columns
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome
from slackfit.simulation.simulate import simulate
from traces.simulation.cells import Cell, cell_arrivals, cell_profile
from traces.spec.spec import parse_spec
from traces.trace import FloatArray

_MIXED_SLOS_S = (0.02, 0.036, 0.1)


def speed_rows(profile: Path) -> list[Row]:
    """Return how many times sooner runs are compiled, 420,000 queries at 7,000/s; best of 25 and 2.

    Without numba a single row says why there are none.
    """
    if missing():
        return [row("policies/twin/compiled", 0.0, "bool", missing())]
    table = LatencyProfile.load(profile)
    arrival_s = parse_spec(load_spec(7000, 4, 60), seed=0).arrival_s
    mixed_s = np.random.default_rng(0).choice(_MIXED_SLOS_S, len(arrival_s))
    cases: tuple[tuple[str, str, float | FloatArray, float], ...] = (
        ("slackfit/one_slo", "slackfit", RESNET_SLO_S, 100.0),
        ("slackfit/mixed_slos", "slackfit", mixed_s, 15.0),
        ("drainfit/one_slo", "drainfit", RESNET_SLO_S, 20.0),
        ("drainfit/mixed_slos", "drainfit", mixed_s, 20.0),
    )
    rows: list[Row] = []
    for name, policy, slo_s, bar in cases:
        run = partial(_run, table, policy, arrival_s, slo_s)
        run(simulate_columns)  # compiled, or read from the cache
        compiled_s = min(run(simulate_columns) for _ in range(25))
        python_s = min(run(simulate) for _ in range(2))
        detail = (
            f">= {bar:g}; {len(arrival_s) / compiled_s / 1e6:.1f} million queries/s compiled, "
            f"{len(arrival_s) / python_s / 1e6:.2f} in Python, processor time"
        )
        rows.append(row(f"policies/twin/speed/{name}", python_s / compiled_s, "ratio", detail))
    return rows


def same_rows(cells: Sequence[Cell], tell: Tell) -> list[Row]:
    """Return how many queries ended otherwise compiled than in Python, over all of `cells`."""
    differing = total = 0
    where: list[str] = []
    for at, cell in enumerate(cells):
        compiled, python = (_outcomes(cell, is_plain=is_plain) for is_plain in (False, True))
        wrong = _num_differing(compiled, python)
        total += len(python)
        differing += wrong
        if wrong:
            where.append(f"{cell.policy} on {cell.spec}: {wrong}")
        if at % 20 == 0:
            tell(f"twin: {at}/{len(cells)} cells")
    detail = f"0; {len(cells)} cells, {total:,} queries; {'; '.join(where[:10]) or 'none'}"
    return [row("policies/twin/differing", differing, "queries", detail, digits=None)]


def _outcomes(cell: Cell, *, is_plain: bool) -> Sequence[Outcome]:
    profile, arrival_s = cell_profile(cell), cell_arrivals(cell)
    policy = create_policy(cell.policy, profile)
    options: dict[str, Any] = {"slo_s": cell.slo_s, "num_workers": cell.num_workers}
    if is_plain:
        return simulate(arrival_s, profile, policy, **options)
    return simulate_columns(arrival_s, profile, policy, **options).columns


def _num_differing(a: Sequence[Outcome], b: Sequence[Outcome]) -> int:
    """Return how many differ in any field."""
    return sum(mine != theirs for mine, theirs in zip(a, b, strict=True))


def _run(
    profile: LatencyProfile,
    policy: str,
    arrival_s: FloatArray,
    slo_s: float | FloatArray,
    function: Callable[..., object],
) -> float:
    """Return the processor seconds of one simulation by `function`."""
    made = create_policy(policy, profile)
    began_s = time.process_time()
    function(arrival_s, profile, made, slo_s=slo_s, num_workers=NUM_WORKERS)
    return time.process_time() - began_s
