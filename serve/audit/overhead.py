"""What the defence itself costs per query, and what epsilon buys; in this process, no server."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serve.observe.metrics import Metrics
from serve.security.lattice import Lattice
from serve.security.mechanism import MECHANISMS
from serve.security.security import Security
from serve.security_config import SecurityConfig
from slackfit.profile import LatencyProfile

_QUERIES = 10_000
_EPSILONS = (0.1, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
_LAX_S = 1e3


def overhead_us(profile: LatencyProfile, security: dict[str, Any], shape: tuple[int, ...]) -> float:
    """Return the median of 10,000 queries' routing, alerts and audit log, in microseconds."""
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 256, (_QUERIES, *shape), dtype=np.uint8)
    took_s: list[float] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as resources:
        config = SecurityConfig(**{**security, "audit_log": str(Path(folder) / "audit.jsonl")})
        guarding = Security(config, Metrics(), resources)
        shield = guarding.protect("audited", profile)
        for sample in samples:
            began_s = time.perf_counter()
            wanted = shield.specification(shield.tier("somebody", 0.0, _LAX_S), _LAX_S)
            drawn = shield.drawn("somebody", wanted, sample)
            shield.note("somebody", wanted, {"drawn": [drawn.subnet_id], "status": "on_time"})
            took_s.append(time.perf_counter() - began_s)
    return float(np.median(took_s) * 1e6)


def epsilon_curve(
    profile: LatencyProfile, security: dict[str, Any], epsilons: Sequence[float] = _EPSILONS
) -> list[dict[str, Any]]:
    """Return for each mechanism and epsilon the best subnet's share, and the accuracy lost.

    Of the highest tier, exactly: probabilities, not draws.
    """
    rows: list[dict[str, Any]] = []
    for mechanism in MECHANISMS:
        for epsilon in epsilons:
            given = {**security, "mechanism": mechanism, "epsilon": epsilon}
            lattice = Lattice(profile, SecurityConfig(**given))
            found = lattice.specification(lattice.tiers[-1], lattice.steps_of(_LAX_S))
            assert found is not None, "a lax deadline fits every tier"
            chances = np.diff((0.0, *found.cumulative))
            accuracies = np.array([profile.accuracy(i) for i in found.subnet_ids])
            rows.append(
                {
                    "mechanism": mechanism,
                    "epsilon": epsilon,
                    "largest_share": float(chances.max()),
                    "accuracy_lost": float(accuracies.max() - chances @ accuracies),
                }
            )
    return rows
