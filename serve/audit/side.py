"""`Side`: the attacks on one running server, each returning plain data for the journal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from serve.audit.audit_images import distinct
from serve.audit.fingerprint import fingerprint
from serve.audit.honest import HonestQuery, served
from serve.audit.local_servers import ATTACKER, AUDITOR, LOOKER, SPENDER, AuditedServer
from serve.audit.prober import Probe, Prober, Seen
from serve.audit.shares import adaptive_share, naive_share, perturbed, repetition
from serve.audit.timing import summary, under_load
from serve.client import InferError

_FLOORS = 8
_FLOOR_RANGE = (0.5, 0.95)
_SCANNED, _REPEATED = 40, 60
_FLOODED, _FLOOD_IN_FLIGHT = 1_000, 64
_LOG_WRITTEN_S = 1.1


class AttackScale(NamedTuple):
    """How much is asked; `load` is the share of the device that others take."""

    share_queries: int = 10_000
    open_share_queries: int = 2_000
    timing_idle: int = 4  # for each subnet
    timing_loaded: int = 30
    load: float = 0.3
    honest_s: float = 30.0
    pool: int = 4_000
    checks: int = 260
    fingerprint_queries: int = 300
    defended_fingerprint_queries: int = 120  # each waits for the grid, and nothing is pinned
    in_flight: int = 8


class Side:
    """One server as attackers and honest users meet it."""

    def __init__(
        self,
        server: AuditedServer,
        images: np.ndarray,
        subnets: Sequence[str],
        *,
        slos_ms: Sequence[float],
        scale: AttackScale,
        seed: int,
        model: str | None = None,
    ) -> None:
        """`subnets` ascend in accuracy; `slos_ms` are the deadlines that attacks try."""
        self._server = server
        self._images = images
        self._subnets = tuple(subnets)
        self._slos_ms = tuple(slos_ms)
        self._scale = scale
        self._seed = seed
        self._model = model
        self._probers: list[Prober] = []

    @property
    def num_queries(self) -> int:
        """How much was asked so far, by all principals."""
        return sum(prober.num_queries for prober in self._probers)

    def prober(self, principal: str = AUDITOR) -> Prober:
        """Return a client with the principal's token."""
        token = self._server.tokens.get(principal)
        self._probers.append(Prober(self._server.url, token, self._model))
        return self._probers[-1]

    async def fingerprint(self) -> dict[str, Any]:
        """Walk the front by bisecting specifications."""
        scale = self._scale
        is_defended = self._server.is_defended
        most = scale.defended_fingerprint_queries if is_defended else scale.fingerprint_queries
        async with self.prober() as prober:
            return await fingerprint(
                prober, self._images, most_queries=most, most_subnets=len(self._subnets)
            )

    async def timing(self, step_s: float) -> dict[str, Any]:
        """Classify subnets by response time; an open server lets the attacker pin them."""
        scale, seed = self._scale, self._seed
        idle = self._timing_questions(scale.timing_idle)
        loaded = self._timing_questions(scale.timing_loaded)
        rate_qps = scale.load / (step_s * (len(self._subnets) + 1)) if step_s else 0.0
        images = distinct(self._images, len(loaded), seed)
        async with self.prober() as prober, self.prober(LOOKER) as background:
            alone = await under_load(
                prober, background, images, idle, rate_qps=0.0, in_flight=1, seed=seed
            )
            beside = await under_load(
                prober, background, images[::-1], loaded, rate_qps=rate_qps, in_flight=6, seed=seed
            )
        return summary(alone, beside, sees_told=not self._server.is_defended, seed=seed)

    def _timing_questions(self, each: int) -> list[Probe]:
        rng = np.random.default_rng(self._seed)
        lax_ms = self._slos_ms[-1]
        if not self._server.is_defended:
            asked = [Probe(slo_ms=lax_ms, subnet=subnet) for subnet in self._subnets] * each
            return [asked[place] for place in rng.permutation(len(asked))]
        floors = rng.choice((0.0, 0.8), each * len(self._subnets))
        return [Probe(float(floor), lax_ms) for floor in floors]

    async def shares(self, corner: Probe, victim: np.ndarray | None) -> dict[str, Any]:
        """Return the best shares that attackers reach, and what one gets who floods the server."""
        scale, seed = self._scale, self._seed
        count = scale.share_queries if self._server.is_defended else scale.open_share_queries
        images = distinct(self._images, count, seed)
        async with self.prober() as prober:
            naive, _ = await naive_share(prober, images, corner, scale.in_flight)
            floors = (0.0, *np.linspace(*_FLOOR_RANGE, _FLOORS))
            adaptive, where = await adaptive_share(
                prober, images[::-1], floors, self._slos_ms, scale.in_flight
            )
            flood = images[:_FLOODED]
            flooded, _ = await naive_share(prober, flood, corner, _FLOOD_IN_FLIGHT)
            repeated = await repetition(
                prober, self._images, corner, victim, naive, scale.in_flight, seed
            )
        found = {"min_accuracy": where.min_accuracy, "slo_ms": where.slo_ms}
        return {
            "naive": naive,
            "adaptive": adaptive,
            "found": found,
            "queries": count,
            "flooded": flooded,
            **repeated,
        }

    async def honest(self, trace: Sequence[HonestQuery]) -> list[list[float]]:
        """Return how each honest query ended: on time, and how accurately."""
        async with self.prober() as prober:
            return [list(map(float, e)) for e in await served(prober, self._images, trace)]

    async def answers(self, kind: str, corner: Probe) -> tuple[np.ndarray, np.ndarray]:
        """Return places and logits (N, classes) of the answers to an arm's questions."""
        rng, count = np.random.default_rng(self._seed), self._scale.pool
        images, lax_ms = self._images[:count], self._slos_ms[-1]
        if kind == "named":
            asked = [Probe(slo_ms=lax_ms, subnet=self._subnets[-1])] * len(images)
        elif kind == "naive":
            floors = rng.uniform(*_FLOOR_RANGE, len(images))
            slos_ms = rng.uniform(self._slos_ms[0] / 10, lax_ms, len(images))
            asked = [Probe(float(f), float(s)) for f, s in zip(floors, slos_ms, strict=True)]
        else:
            asked = [corner._replace(slo_ms=lax_ms)] * len(images)
        async with self.prober() as prober:
            seen = await prober.ask_all(images, asked, self._scale.in_flight)
        return _answered(seen)

    async def outputs(self, images: np.ndarray, corner: Probe) -> np.ndarray:
        """Return the logits (N, classes) of images asked at the corner."""
        async with self.prober() as prober:
            asked = [corner._replace(slo_ms=self._slos_ms[-1])] * len(images)
            seen = await prober.ask_all(images, asked, self._scale.in_flight)
        return _answered(seen)[1]

    async def spend(self) -> dict[str, Any]:
        """Ask as much as `checks` says; return after how many it was enough, and what was seen."""
        count, lax_ms = self._scale.checks, self._slos_ms[-1]
        images, refused_after = distinct(self._images, count, self._seed), 0
        seen: list[Seen] = []
        async with self.prober(SPENDER) as spender:
            try:
                seen.append(await spender.ask(images[0], Probe(slo_ms=lax_ms)))
                await spender.ask_all(images[1:], [Probe(slo_ms=lax_ms)] * (count - 1), 4)
            except (InferError, ExceptionGroup) as error:
                if not is_limited(error):
                    raise
                refused_after = spender.num_queries
        logits = seen[0].logits if seen else None
        return {
            "refused_after": refused_after,
            "tried": count,
            "output_is_reduced": None if logits is None else _is_reduced(logits),
        }

    async def checks(self) -> dict[str, Any]:
        """Do what a server should notice; return what it did about it."""
        scale, lax_ms = self._scale, self._slos_ms[-1]
        images = distinct(self._images, scale.checks, self._seed)
        spent = await self.spend()
        async with self.prober(ATTACKER) as attacker:
            first = await attacker.ask(images[0], Probe(slo_ms=lax_ms))
            scan = [Probe(0.5 + 0.001 * n, lax_ms) for n in range(_SCANNED)]
            await attacker.ask_all(images[:_SCANNED], scan, 4)
            again = np.repeat(images[:1], _REPEATED, axis=0)
            await attacker.ask_all(again, [Probe(slo_ms=lax_ms)] * _REPEATED, 4)
            rng = np.random.default_rng(self._seed)
            flat = np.full_like(again, 127)  # in the middle of a step of what it looks like
            await attacker.ask_all(perturbed(flat, rng), [Probe(slo_ms=lax_ms)] * _REPEATED, 4)
            await asyncio.sleep(_LOG_WRITTEN_S)
            await attacker.ask(images[1], Probe(slo_ms=lax_ms))  # its entry takes the others along
        log = self._server.audit_log
        alerts = [] if log is None else _alerts(log.read_text().splitlines())
        return {
            **spent,
            "alerts": sorted({alert["pattern"] for alert in alerts}),
            "alert_fields": sorted({name for alert in alerts for name in alert}),
            "answers_name_subnets": bool(first.subnet_id),
            "has_watermark": False,  # servers of ours put none in
        }


def _answered(seen: Sequence[Seen]) -> tuple[np.ndarray, np.ndarray]:
    places = [place for place, one in enumerate(seen) if one.is_answered]
    rows = [one.logits for one in seen if one.logits is not None]
    return np.array(places), np.array(rows, dtype=np.float32)


def _alerts(lines: Sequence[str]) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in lines]
    return [entry for entry in entries if entry.get("alert")]


def _is_reduced(logits: np.ndarray) -> bool:
    """Whether an output is probabilities of few decimals, or one class alone."""
    return bool(np.allclose(logits, np.round(logits, 3), atol=1e-7))


def is_limited(error: Exception) -> bool:
    """Whether an error says that this principal may ask no more for now, and nothing else."""
    if isinstance(error, ExceptionGroup):
        return all(is_limited(one) for one in error.exceptions)
    return isinstance(error, InferError) and error.reason == "rate_limited"
