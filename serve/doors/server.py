"""`Server`: what all doors of one process share."""

from __future__ import annotations

from dataclasses import dataclass, field

from serve.access.guard import Guard
from serve.models.models import Models
from serve.observe.metrics import Metrics

_BODY_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class Server:
    """The served models, who may ask them, and what is counted of it.

    `max_body_bytes` bounds a request at every door, `drain_timeout_s` how long queued queries are
    finished for once the server ends.
    """

    models: Models
    metrics: Metrics = field(default_factory=Metrics)
    guard: Guard = field(default_factory=Guard)
    max_body_bytes: int = _BODY_BYTES
    drain_timeout_s: float = 10.0

    async def drain(self) -> bool:
        """Refuse new queries and finish the queued ones; return whether all ended in time."""
        return await self.models.drain(self.drain_timeout_s)

    def refresh_metrics(self) -> None:
        """Set what is a state and not an event; called when the metrics are read."""
        self.metrics.refresh(self.models.engines())
