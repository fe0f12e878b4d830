"""`Security`: the defence of a whole server; what its doors and its assembly ask."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from serve.engine.engine import Engine
from serve.models.models import Models
from serve.observe.metrics import Metrics
from serve.observe.request_record import EndedRequest, RequestObserver, RequestRecord
from serve.observe.tallies import TallyCounter
from serve.security.audit_log import AuditLog
from serve.security.budget import EpsilonBudget
from serve.security.lattice import Lattice
from serve.security.loose_pins import LooseEngine
from serve.security.patterns import Alert, PatternWatch
from serve.security.public_counts import RELEASED, PublicCounts
from serve.security.redaction import PUBLIC_METRICS, veiled_record
from serve.security.shield import Shield
from serve.security.sticky import StickyDraw, read_key
from serve.security.veiled_model import VeiledModels, Viewer
from serve.security_config import SecurityConfig
from slackfit.profile import LatencyProfile

logger = logging.getLogger("serve.security")

_MOST_VIEWS = 1000


class Security:
    """What is kept of principals, and a shield for each model.

    `resources` closes what was opened. Raises ServeConfigError.
    """

    def __init__(
        self,
        config: SecurityConfig,
        metrics: Metrics,
        resources: contextlib.ExitStack,
        *,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._unix_clock = unix_clock
        self._draw = StickyDraw(read_key(config.key_file), config.window_s, unix_clock)
        self._budget = EpsilonBudget(config.epsilon, config.budget_epsilon)
        self._alerts = TallyCounter(
            "supernet_security_alerts",
            "Alerts by principal and pattern.",
            ("principal", "pattern"),
            metrics.registry,
        )
        self._released = TallyCounter(
            RELEASED,
            "Samples that were answered or refused, as that left.",
            ("model", "status"),
            metrics.registry,
        )
        self._log: AuditLog | None = None
        if config.audit_log is not None:
            opened = AuditLog(config.audit_log, clock)
            self._log = resources.enter_context(contextlib.closing(opened))
        self._watch = PatternWatch(
            window_s=config.alert_window_s,
            max_specifications=config.max_specifications,
            max_repeats=config.max_repeats,
            clock=clock,
            tell=self._alert,
        )
        self._shields: dict[str, Shield] = {}
        self._views: dict[tuple[str, frozenset[str]], VeiledModels] = {}

    engine: type[Engine] = LooseEngine
    """What schedules for it: an engine that lets drawn subnets go for the deadlines' sake."""

    def protect(self, name: str, offered: LatencyProfile) -> Shield:
        """Lay out the defence of one model and return it. Raises ServeConfigError."""
        shield = self._shields[name] = Shield(
            name,
            self._config,
            offered,
            draw=self._draw,
            budget=self._budget,
            watch=self._watch,
            log=self._log,
            counts=PublicCounts(name, self._released, self._unix_clock),
            unix_clock=self._unix_clock,
        )
        return shield

    def check(self, offered: LatencyProfile) -> None:
        """Raise ServeConfigError unless a subnet can hide among those offered."""
        Lattice(offered, self._config)

    def models_for(self, models: Models, principal: str, scopes: frozenset[str]) -> VeiledModels:
        """Return the models as a caller sees them; kept, since a query would make it anew."""
        view = self._views.get((principal, scopes))
        if view is None:
            if len(self._views) >= _MOST_VIEWS:
                self._views.clear()
            view = VeiledModels(models, self._shields, Viewer(principal, scopes))
            self._views[principal, scopes] = view
        return view

    def render_metrics(self, metrics: Metrics, scopes: frozenset[str]) -> bytes:
        """Return the exposition text: what is public only for those who also ask queries."""
        if "infer" in scopes and "audit" not in scopes:
            return metrics.render(PUBLIC_METRICS)
        return metrics.render()

    def veiling(self, observers: Sequence[RequestObserver]) -> list[RequestObserver]:
        """Return the observers so that they see what principals may read."""
        return [_veiled(observer) for observer in observers]

    def _alert(self, alert: Alert) -> None:
        about: dict[str, Any] = {
            "principal": alert.principal,
            "pattern": alert.pattern,
            "seen": alert.seen,
            "allowed": alert.allowed,
        }
        self._alerts.labels(alert.principal, alert.pattern).inc()
        logger.warning("alert %s", alert.pattern, extra={"facts": about})
        if self._log is not None:
            self._log.note({"time": round(self._unix_clock(), 3), "alert": True, **about})


def _veiled(observer: RequestObserver) -> RequestObserver:
    def observe(record: EndedRequest) -> None:
        assert isinstance(record, RequestRecord), "streams are not served with a defence"
        observer(veiled_record(record))

    return observe
