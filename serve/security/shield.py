"""`Shield`: the defence of one model: which subnet a query gets, and what is noted of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from serve.models.limits import RefusedError
from serve.security.audit_log import AuditLog
from serve.security.budget import EpsilonBudget
from serve.security.lattice import Lattice, Specification, Tier
from serve.security.loose_pins import LoosePin
from serve.security.patterns import PatternWatch
from serve.security.public_counts import PublicCounts
from serve.security.sticky import StickyDraw, digest_of, look_of
from serve.security_config import OutputForm, SecurityConfig
from slackfit.profile import LatencyProfile

SPENT = "budget_spent"


class ShieldRefusedError(RefusedError):
    """A refusal whose text says what the operator's settings allow, which everybody may know."""


class Drawn(NamedTuple):
    """A draw: the subnet, and the digest of the input that it belongs to."""

    subnet_id: LoosePin
    digest: bytes


class Shield:
    """Draws subnets for the queries of one model; what the models share is handed in."""

    def __init__(
        self,
        name: str,
        config: SecurityConfig,
        profile: LatencyProfile,
        *,
        draw: StickyDraw,
        budget: EpsilonBudget,
        watch: PatternWatch,
        log: AuditLog | None,
        counts: PublicCounts,
        unix_clock: Callable[[], float],
    ) -> None:
        """Raises ServeConfigError for tiers that `profile` can't hide a subnet in."""
        self._name = name
        self._model_key = f"{name}\0".encode()
        self._config = config
        self._draw = draw
        self._budget = budget
        self._watch = watch
        self._log = log
        self.counts = counts
        self._unix_clock = unix_clock
        self._lattice = Lattice(profile, config)

    @property
    def lattice(self) -> Lattice:
        """The specifications of the profile that is offered."""
        return self._lattice

    def use(self, profile: LatencyProfile) -> None:
        """Lay the specifications out for another profile. Raises ServeConfigError."""
        self._lattice = Lattice(profile, self._config)

    def tier(self, principal: str, min_accuracy: float, given_s: float) -> Tier:
        """Return the tier that a request counts as. Raises ShieldRefusedError, `accuracy_floor`."""
        self._watch.specification(principal, min_accuracy, given_s)
        found = self._lattice.tier_of(min_accuracy)
        if found is None:
            allowed = ", ".join(f"{tier.floor:g} ({tier.name})" for tier in self._lattice.tiers)
            text = f"parameter min_accuracy is {min_accuracy:g}, allowed {allowed}, or less"
            raise ShieldRefusedError("accuracy_floor", text)
        return found

    def specification(self, tier: Tier, given_s: float) -> Specification:
        """Return the specification. Raises ShieldRefusedError, `infeasible`, too early."""
        lattice = self._lattice
        specification = lattice.specification(tier, lattice.steps_of(given_s))
        if specification is None:
            shortest_ms = lattice.shortest_steps(tier) * lattice.grid_s * 1e3
            text = f"the shortest deadline of tier {tier.name} is {shortest_ms:g} ms"
            raise ShieldRefusedError("infeasible", text)
        return specification

    def drawn(self, principal: str, specification: Specification, sample: np.ndarray) -> Drawn:
        """Return the subnet for one input. Raises ShieldRefusedError, `rate_limited`."""
        digest = digest_of(sample)
        self._watch.input(principal, digest, look_of(sample))
        question = self._model_key + specification.key + digest
        if not self._budget.spend(principal, self._draw.window(), question):
            self._watch.attempt(principal, SPENT)
            raise ShieldRefusedError(
                "rate_limited",
                "the budget of this principal is spent for now",
                retry_after_s=self._draw.window_left_s(),
            )
        uniform = self._draw.uniform(principal, question)
        return Drawn(LoosePin(specification.chosen(uniform)), digest)

    def refuse_pin(self, principal: str) -> ShieldRefusedError:
        """Return the refusal of a request that names a subnet."""
        self._watch.attempt(principal, "pin_attempt")
        return ShieldRefusedError("forbidden", "the server chooses the subnet: leave it open")

    def form(self, tier: Tier) -> OutputForm:
        """Return in which form a tier's outputs are given."""
        return self._config.outputs.get(tier.name, "full")

    @property
    def decimals(self) -> int:
        """To how many decimals probabilities are rounded."""
        return self._config.decimals

    def told(self) -> dict[str, Any]:
        """Return what everybody may know: the tiers and the grid."""
        tiers = {tier.name: tier.floor for tier in self._lattice.tiers}
        return {"tiers": tiers, "deadline_grid_ms": self._config.grid_ms}

    def note(
        self,
        principal: str,
        specification: Specification,
        drawn: Sequence[Drawn],
        *,
        served: Sequence[str],
        status: str,
        request_id: str,
    ) -> None:
        """Write to the audit log what was drawn for a request's samples, and what served them."""
        if self._log is None:
            return
        self._log.note(
            {
                "time": round(self._unix_clock(), 3),
                "model": self._name,
                "principal": principal,
                "tier": specification.tier.name,
                "deadline_ms": round(specification.steps * self._config.grid_ms, 3),
                "epsilon_spent": self._budget.spent(principal),
                "request_id": request_id,
                "digest": drawn[0].digest.hex(),
                "samples": len(drawn),
                "drawn": sorted({one.subnet_id for one in drawn}),
                "served": sorted(set(served)),
                "status": status,
            }
        )
