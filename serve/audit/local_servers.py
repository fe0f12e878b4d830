"""Servers on loopback that an audit attacks: one front, once open and once defended.

Fourteen float subnets, spread over the checkpoint's front, on the timed device with their own
outputs: batches take the time of a table in which subnets differ by a given step, so that what is
measured is the choice and not this machine.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.bench.serving.server_process import server_process
from serve.config import ServeConfig, parse_config
from slackfit.profile import LatencyProfile, SubnetProfile
from supernet.checkpoint import Checkpoint, ServedSubnet

NUM_SUBNETS = 14
_BATCH_SIZES = (1, 2, 4, 8)
_FIXED_SHARE = 0.6  # of a sample's time: what a batch pays once
_LEAST_STEPS = 2
AUDITOR, ATTACKER, LOOKER, SPENDER = "auditor", "attacker", "looker", "spender"
_SCOPES = {
    AUDITOR: "infer,audit", ATTACKER: "infer", LOOKER: "infer,metrics", SPENDER: "infer",
}  # fmt: skip


@dataclass(frozen=True)
class AuditedServer:
    """A running server: its URL, tokens by who holds them, its audit log if it keeps one."""

    url: str
    tokens: Mapping[str, str]
    audit_log: Path | None
    is_defended: bool


class LocalServers:
    """Starts servers of one checkpoint; what they need is written to `folder`."""

    def __init__(self, checkpoint: Path, loaded: Checkpoint, folder: Path) -> None:
        self._checkpoint = checkpoint
        self._loaded = loaded
        self._folder = folder
        self.subnets = spread_front(loaded.subnets, NUM_SUBNETS)

    def profile(self, step_s: float) -> LatencyProfile:
        """Return the table of times: one step more for each subnet."""
        rows = [
            SubnetProfile(
                subnet_id=subnet.subnet_id,
                accuracy=subnet.accuracy,
                macs=subnet.macs,
                latency_s={
                    "p50": tuple(
                        step_s * (place + _LEAST_STEPS) * (_FIXED_SHARE + (1 - _FIXED_SHARE) * size)
                        for size in _BATCH_SIZES
                    )
                },
            )
            for place, subnet in enumerate(self.subnets)
        ]
        return LatencyProfile(
            name="audit",
            device="timed",
            dtype="float32",
            batch_sizes=_BATCH_SIZES,
            subnets=tuple(rows),
            checkpoint=self._loaded.fingerprint,
            source=f"made up: steps of {step_s * 1e3:g} ms",
        )

    def security(self, step_s: float) -> dict[str, Any]:
        """Return the defence's settings: a step of the grid takes eight times the slowest."""
        slowest_s = step_s * (NUM_SUBNETS - 1 + _LEAST_STEPS)
        return {"tiers": 3, "grid_ms": round(8e3 * slowest_s, 3)}

    @contextlib.contextmanager
    def serving(
        self, step_s: float, *, is_defended: bool, **settings: Any
    ) -> Iterator[AuditedServer]:
        """Run a server for the length of a `with` block; `settings` are further ones of `serve`."""
        tokens = {name: secrets.token_hex(16) for name in _SCOPES}
        tokens_file, profile = self._folder / "tokens", self._folder / f"{step_s * 1e3:g}ms.json"
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{name} {scopes} {tokens[name]}\n" for name, scopes in _SCOPES.items()]
        tokens_file.touch(mode=0o600)
        tokens_file.write_text("".join(lines))
        self.profile(step_s).save(profile)
        log = self._folder / "audit.jsonl" if is_defended else None
        security: dict[str, Any] | None = None
        if log is not None:
            log.unlink(missing_ok=True)
            security = {**self.security(step_s), "audit_log": str(log)}
            security |= settings.pop("security", {})
        config = self.config(
            profile=str(profile), tokens_file=str(tokens_file), security=security, **settings
        )
        with server_process(config) as server:
            yield AuditedServer(server.url, tokens, log, is_defended)

    @contextlib.contextmanager
    def serving_live(self) -> Iterator[AuditedServer]:
        """Run the same subnets on this CPU at its own pace, open."""
        subnets = tuple(subnet.subnet_id for subnet in self.subnets)
        with server_process(self.config(device="cpu", subnets=subnets)) as server:
            yield AuditedServer(server.url, {}, None, False)

    def config(self, **settings: Any) -> ServeConfig:
        """Return the settings of a server."""
        return parse_config(
            {
                "checkpoint": str(self._checkpoint),
                "device": "timed",
                "model_name": "audited",
                "policy": "drainfit",
                "port": 0,
                "slo_ms": 1000.0,
                "log_queries": "none",
                **settings,
            }
        )


def spread_front(subnets: tuple[ServedSubnet, ...], count: int) -> tuple[ServedSubnet, ...]:
    """Return up to `count` float subnets, each more accurate than all smaller ones, evenly spread.

    Raises ValueError where fewer than eight are left.
    """
    front: list[ServedSubnet] = []
    for subnet in sorted(subnets, key=lambda s: (s.macs, -s.accuracy)):
        if subnet.precision == "fp32" and (not front or subnet.accuracy > front[-1].accuracy):
            front.append(subnet)
    if len(front) < 8:
        raise ValueError(f"the front has {len(front)} subnets, an audit needs 8 or more")
    count = min(count, len(front))
    places = [round(place * (len(front) - 1) / (count - 1)) for place in range(count)]
    return tuple(front[place] for place in places)
