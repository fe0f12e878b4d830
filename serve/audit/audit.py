"""`LocalAudit`: one front on loopback, attacked once open and once defended.

Every part is a cell of the journal: a run that was interrupted goes on where it stopped. Servers
are started for what is measured on them: with slow steps where subnets are to differ by
milliseconds (fingerprints, timing), with fast ones where many queries are asked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from serve.audit.agreement import ReferenceOutputs
from serve.audit.audit_images import AuditImages
from serve.audit.checklist import Evidence, checklist
from serve.audit.copying.bodies import find_body
from serve.audit.copying.copies import Copies, CopyScale, copy_needs
from serve.audit.copying.extraction import Answers, Judged, has_toolbox
from serve.audit.honest import HonestEnd, HonestQuery, honest_trace, price
from serve.audit.local_servers import LocalServers
from serve.audit.membership import membership
from serve.audit.overhead import epsilon_curve, overhead_us
from serve.audit.prober import Probe
from serve.audit.side import AttackScale, Side
from serve.bench.journal import Journal
from serve.bench.rows import Tell

SLOW_STEP_S, FAST_STEP_S = 6e-3, 0.4e-3
SIDES = ("undefended", "defended")
_GRID_SLOTS = (2.0, 3.0, 4.0)  # honest deadlines, in steps of the grid
_ATTACK_SLOTS = (1.0, 2.0, 4.0, 20.0)
_AGREEMENT_IMAGES, _HELD_OUT, _MEMBERS = 1_000, 4_000, 500
_HONEST_LOAD = 0.2
_BUDGET = 200.0


class LocalAudit:
    """Measures what the journal lacks; `folder` keeps answers and what servers need."""

    def __init__(
        self,
        servers: LocalServers,
        checkpoint: Path,
        images: AuditImages,
        journal: Journal,
        folder: Path,
        *,
        scale: AttackScale,
        copies: CopyScale,
        seed: int,
        tell: Tell,
    ) -> None:
        self._servers = servers
        self._journal = journal
        self._folder = folder
        self._scale = scale
        self._copy_scale = copies
        self._seed = seed
        self._tell = tell
        self._subnets = tuple(subnet.subnet_id for subnet in servers.subnets)
        self._pool, self._rest = images.split(scale.pool)
        self._source = images.source
        self._members = images.members
        self._reference = ReferenceOutputs(checkpoint, self._subnets)

    def run(self) -> dict[str, Any]:
        """Return the whole record."""
        try:
            return self._run()
        finally:
            self._reference.close()

    def _run(self) -> dict[str, Any]:
        victim = self._reference.labels(self._subnets[-1], self._pool.images)
        corners: dict[str, Probe] = {}
        for side in SIDES:
            walk = self._once(side, "walk", self._walk)
            corners[side] = self._corner(walk)
            self._once(side, "shares", lambda s: self._shares(s, corners[s], victim))
            self._once(side, "honest", self._honest)
            self._once(side, "checks", self._checks)
            self._answers(side, corners[side])
        self._journal.once("live", self._live)
        self._journal.once("agreement", self._agreement)
        rows = self._copies()
        return self._record(rows)

    def _once(self, side: str, part: str, measure: Callable[[str], Any]) -> Any:
        name = f"{side}/{part}"
        if name not in self._journal:
            self._tell(f"{name} ...")
        return self._journal.once(name, lambda: measure(side))

    @contextlib.contextmanager
    def _side(self, side: str, step_s: float, **settings: Any) -> Iterator[Side]:
        is_defended = side == "defended"
        grid_ms = self._servers.security(step_s)["grid_ms"]
        slots = [slot * grid_ms for slot in _ATTACK_SLOTS]
        with self._servers.serving(step_s, is_defended=is_defended, **settings) as server:
            yield Side(
                server,
                self._pool.images,
                self._subnets,
                slos_ms=slots,
                scale=self._scale,
                seed=self._seed,
            )

    # --- parts -----------------------------------------------------------------------------------

    def _walk(self, side: str) -> dict[str, Any]:
        async def attack(one: Side) -> dict[str, Any]:
            found = await one.fingerprint()
            self._tell(f"{side}: {found['pinned']} of {found['subnets']} subnets pinned")
            timing = await one.timing(SLOW_STEP_S)
            self._tell(f"{side}: timing {timing['accuracy']:.3f}, chance {timing['chance']:.3f}")
            return {"fingerprint": found, "timing": timing}

        with self._side(side, SLOW_STEP_S) as one:
            return asyncio.run(attack(one))

    def _corner(self, walk: dict[str, Any]) -> Probe:
        """Return where the first bisection ended, at the longest deadline of the fast server."""
        corners = walk["fingerprint"]["corners"]
        floor = corners[0]["min_accuracy"] if corners else 0.0
        return Probe(floor, _ATTACK_SLOTS[-1] * self._servers.security(FAST_STEP_S)["grid_ms"])

    def _shares(self, side: str, corner: Probe, victim: np.ndarray) -> dict[str, Any]:
        with self._side(side, FAST_STEP_S) as one:
            found = asyncio.run(one.shares(corner, victim))
        self._tell(f"{side}: shares {found['naive']:.3f} naive, {found['adaptive']:.3f} adaptive")
        return found

    def _honest(self, side: str) -> list[list[float]]:
        with self._side(side, FAST_STEP_S) as one:
            return asyncio.run(one.honest(self._trace()))

    def _trace(self) -> list[HonestQuery]:
        """Return the honest users' trace: floors of the tiers and none, three deadlines."""
        from serve.security.lattice import Lattice
        from serve.security_config import SecurityConfig

        profile, security = self._servers.profile(FAST_STEP_S), self._servers.security(FAST_STEP_S)
        tiers = Lattice(profile, SecurityConfig(**security)).tiers
        slowest_s = max(profile.latency_s(i, 1) for i in profile.subnet_ids)
        return honest_trace(
            _HONEST_LOAD / slowest_s,
            self._scale.honest_s,
            (0.0, *(tier.floor for tier in tiers)),
            [slot * security["grid_ms"] for slot in _GRID_SLOTS],
            self._seed,
        )

    def _checks(self, side: str) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        if side == "defended":
            outputs = {"bronze": "rounded", "silver": "rounded"}
            settings["security"] = {"budget_epsilon": _BUDGET, "outputs": outputs}
        with self._side(side, FAST_STEP_S, **settings) as one:
            return asyncio.run(one.checks())

    def _answers(self, side: str, corner: Probe) -> None:
        """Collect what the arms of extraction get, and members' outputs, in files."""
        arms = ("named", "naive", "fingerprinted") if side == "undefended" else ("defended",)
        members = self._membership_images()
        wanted = [*arms, *(("members", "others") if members else ())]
        lacking = [k for k in wanted if self._read(side, k) is None]
        if not lacking:
            return
        self._tell(f"{side}/answers ...")
        with self._side(side, FAST_STEP_S) as one:
            for kind in lacking:
                self._journal.once(
                    f"{side}/answers/{kind}", lambda k=kind: self._collect(one, side, k, corner)
                )

    def _collect(self, one: Side, side: str, kind: str, corner: Probe) -> int:
        """Ask for an arm's answers and write them; return how many there are."""
        members = self._membership_images()
        if kind in members:
            logits = asyncio.run(one.outputs(members[kind], corner))
            places = np.arange(len(logits))
        else:
            places, logits = asyncio.run(one.answers(kind, corner))
        np.savez(self._folder / f"answers-{side}-{kind}.npz", places=places, logits=logits)
        return len(places)

    def _membership_images(self) -> dict[str, np.ndarray]:
        if self._members is None:
            return {}
        rng = np.random.default_rng(self._seed)
        chosen = rng.choice(len(self._members), min(_MEMBERS, len(self._members)), replace=False)
        return {
            "members": np.asarray(self._members[np.sort(chosen)]),
            "others": self._rest.images[:_MEMBERS],
        }

    def _read(self, side: str, kind: str) -> Answers | None:
        if f"{side}/answers/{kind}" not in self._journal:
            return None
        path = self._folder / f"answers-{side}-{kind}.npz"
        arrays = np.load(path, allow_pickle=False)
        return Answers(arrays["places"], arrays["logits"])

    def _live(self) -> dict[str, Any]:
        """Classify by the response time of this CPU, open and idle: printed, no bar."""
        self._tell("live CPU timing ...")
        slos_ms = [1000.0]
        with self._servers.serving_live() as server:
            one = Side(
                server,
                self._pool.images,
                self._subnets,
                slos_ms=slos_ms,
                scale=self._scale,
                seed=self._seed,
            )
            return asyncio.run(one.timing(0.0))

    def _agreement(self) -> dict[str, Any]:
        images, labels = self._rest.images[:_AGREEMENT_IMAGES], self._rest.labels
        part = None if labels is None else labels[:_AGREEMENT_IMAGES]
        return self._reference.agreement(images, part)

    def _copies(self) -> list[dict[str, Any]]:
        arms = {"named": 0, "naive": 0, "fingerprinted": 0, "defended": 1}
        answers = {arm: found for arm, at in arms.items() if (found := self._read(SIDES[at], arm))}
        held_out = self._rest.images[:_HELD_OUT]
        labels = None if self._rest.labels is None else self._rest.labels[:_HELD_OUT]
        victim = self._reference.labels(self._subnets[-1], held_out)
        body = find_body(self._pool.images, self._seed)
        judged = Judged(held_out, victim, labels)
        copies = Copies(
            self._pool.images,
            answers,
            held_out,
            judged,
            body,
            self._journal,
            self._copy_scale,
            self._tell,
        )
        self._body_name = body.name
        return copies.rows()

    # --- the record ------------------------------------------------------------------------------

    def _record(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        profile, security = self._servers.profile(SLOW_STEP_S), self._servers.security(SLOW_STEP_S)
        needs = copy_needs(rows)
        return {
            **{side: self._side_record(side, rows, needs) for side in SIDES},
            "agreement": self._journal.get("agreement"),
            "timing_live_cpu": self._journal.get("live"),
            "epsilon_curve": epsilon_curve(profile, security),
            "overhead_us": self._journal.once(
                "overhead", lambda: overhead_us(profile, security, self._pool.images.shape[1:])
            ),
            "setting": {
                "subnets": list(self._subnets),
                "images": self._source,
                "student_body": self._body_name,
                "toolbox": has_toolbox(),
                "device": "timed: batches take made-up times, outputs are the subnets' own",
                "security": security,
                "steps_ms": [SLOW_STEP_S * 1e3, FAST_STEP_S * 1e3],
                "seed": self._seed,
            },
        }

    def _side_record(
        self, side: str, rows: list[dict[str, Any]], needs: int | None
    ) -> dict[str, Any]:
        journal = self._journal
        walk, shares = journal.get(f"{side}/walk"), journal.get(f"{side}/shares")
        ends = {s: [HonestEnd(bool(e[0]), e[1]) for e in journal.get(f"{s}/honest")] for s in SIDES}
        cost = price(self._trace(), ends["undefended"], ends[side])
        is_open = side == "undefended"
        seen = Evidence(**journal.get(f"{side}/checks"), copy_needs=needs)
        return {
            "fingerprint": walk["fingerprint"],
            "share": shares,
            "goodput": cost["goodput"],
            "served_accuracy_lost": cost["served_accuracy_lost"],
            "price": cost,
            "timing": walk["timing"],
            "extraction": [row for row in rows if (row["arm"] != "defended") == is_open],
            "membership": self._membership(side),
            "checklist": checklist(seen),
        }

    def _membership(self, side: str) -> dict[str, Any] | None:
        members, others = self._read(side, "members"), self._read(side, "others")
        if members is None or others is None:
            return None
        return membership(members.logits, others.logits, self._seed)
