"""What the defence itself costs per query, and what epsilon buys; in this process, no server."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from serve.config import ServeConfig, parse_config
from serve.engine.engine import Engine
from serve.engine.reply import Reply, RequestOptions
from serve.hosts.assemble import build_model
from serve.hosts.load_device import LoadedDevice
from serve.models.models import Models
from serve.models.request import InferRequest
from serve.models.served_model import ServedModel
from serve.observe.metrics import Metrics
from serve.proto.names import SLO_HEADER
from serve.security.lattice import Lattice
from serve.security.mechanism import MECHANISMS
from serve.security.security import Security
from serve.security_config import SecurityConfig
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome
from slackfit.scheduling.scheduler import Scheduler
from subnetact.timed_executor import TimedExecutor
from supernet.sample import SampleSpec

_QUERIES = 10_000
_EPSILONS = (0.1, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
_LAX_S = 1e3
_NAME, _PRINCIPAL, _CLASSES = "audited", "token somebody", 10
_READY_STEPS, _SLO_STEPS = 10, 40  # of the grid: when answers are ready, and how late they may be


class _ReadyEngine(Engine):
    """Has each answer ready as it is asked, at a time that is a point of the grid.

    Then nothing waits, and what is timed is what surrounds an engine.
    """

    async def infer(
        self, samples: np.ndarray, *, arrival_s: float, options: RequestOptions
    ) -> list[Reply]:
        subnet_id = str(options.subnet_id or self.profile.subnet_ids[0])
        outcome = Outcome(
            0,
            "on_time",
            "",
            arrival_s,
            options.deadline_s,
            arrival_s,
            self.clock(),
            subnet_id,
            self.profile.accuracy(subnet_id),
            len(samples),
            samples=len(samples),
        )
        return [Reply(outcome, np.zeros((len(samples), _CLASSES), dtype=np.float32))]


def overhead_us(
    profile: LatencyProfile, security: dict[str, Any], shape: tuple[int, ...]
) -> dict[str, float]:
    """Return what a query costs around the engine, in microseconds, medians of 10,000.

    `undefended` and `defended` are the same model without and with its defence, alerts and audit
    log included; `on` is the difference.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as resources:
        path = Path(folder) / "profile.json"
        profile.save(path)
        config = parse_config(
            {
                "device": "timed",
                "profile": str(path),
                "security": {**security, "audit_log": str(Path(folder) / "audit.jsonl")},
            }
        )
        assert config.security is not None, "given"
        metrics = Metrics()
        guarding = Security(config.security, metrics, resources)
        opened = Models([_model(config, profile, shape, Metrics(), resources, None)])
        guarded = Models([_model(config, profile, shape, metrics, resources, guarding)])

        def seen() -> Models:
            return cast("Models", guarding.models_for(guarded, _PRINCIPAL, frozenset(("infer",))))

        asked = {SLO_HEADER: str(_SLO_STEPS * config.security.grid_ms)}
        both = (lambda: opened), seen
        undefended, defended = asyncio.run(_medians_us(both, shape, asked))
    return {"on": defended - undefended, "undefended": undefended, "defended": defended}


def _model(
    config: ServeConfig,
    profile: LatencyProfile,
    shape: tuple[int, ...],
    metrics: Metrics,
    resources: contextlib.ExitStack,
    guarding: Security | None,
) -> ServedModel:
    assert config.security is not None, "given"
    executor = TimedExecutor(profile, SampleSpec(shape=shape), _CLASSES)
    loaded = LoadedDevice(executor, profile, _NAME)
    model = build_model(config, loaded, metrics, resources, security=guarding)
    offered = model.engine.profile
    ready_s = _READY_STEPS * config.security.grid_ms * 1e-3
    scheduler = Scheduler(offered, create_policy(config.policy, offered))
    model.engine = _ReadyEngine(scheduler, executor, clock=lambda: ready_s)
    return model


async def _medians_us(
    both: Sequence[Callable[[], Models]], shape: tuple[int, ...], asked: Mapping[str, str]
) -> list[float]:
    """Return the median of each, asked in turns; each image is a new one."""
    rng = np.random.default_rng(0)
    took_s: list[list[float]] = [[] for _ in both]
    for _ in range(_QUERIES):
        sample = rng.integers(0, 256, (1, *shape), dtype=np.uint8)
        request = InferRequest(sample, None, {})
        for models, each_s in zip(both, took_s, strict=True):
            began_s = time.perf_counter()
            await models().find(_NAME).infer(request, asked, arrival_s=0.0)
            each_s.append(time.perf_counter() - began_s)
    return [float(np.median(each_s) * 1e6) for each_s in took_s]


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
