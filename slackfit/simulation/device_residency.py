"""Residency in the simulator: which subgraphs a device keeps, and what its batches take then.

A profile's residency tables are SUSHI's L[subnet][subgraph]: a subgraph may be resident whole, as
many of them as the budget has room for. A batch takes its subnet's time beside the best of those
that are resident, and loading is charged to the batch after which it happens. Each device has a
policy of its own (`POLICIES`), the very objects of `slackfit.residency` that drive the real cache;
subgraphs that overlap count their bytes twice, which the real cache does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from slackfit.profile import LatencyProfile, ProfileError
from slackfit.residency import (
    Candidate,
    EncodedSubgraph,
    FixedResidency,
    Keys,
    NearestAverage,
    ResidencyPolicy,
    Savings,
    ValuePerByte,
)

POLICIES = ("value", "sushisched", "static")
_SITE = "subgraph"  # of several that are resident the best one counts, so they share one site


class SimulatedResidency:
    """What every device keeps resident, driven by the batches that it runs."""

    def __init__(
        self,
        profile: LatencyProfile,
        policy: str,
        *,
        num_workers: int = 1,
        budget_bytes: int | None = None,
    ) -> None:
        """Start with nothing resident; `budget_bytes` None has room for the largest subgraph.

        Raises ValueError for an unknown policy or a budget without room for any subgraph, and
        ProfileError for a profile that has no residency tables, or no encodings for sushisched.
        """
        if policy not in POLICIES:
            raise ValueError(
                f"residency policy {policy!r} is unknown, allowed {', '.join(POLICIES)}"
            )
        if not profile.residency:
            raise ProfileError(
                f"profile {profile.name!r} has no residency tables; measure them with "
                "`supernet profile --residency MIB`"
            )
        sizes = [table.num_bytes for table in profile.residency]
        self._budget_bytes = max(sizes) if budget_bytes is None else budget_bytes
        if self._budget_bytes < min(sizes):
            raise ValueError(
                f"a cache of {self._budget_bytes} bytes has room for no subgraph of the profile; "
                f"the smallest has {min(sizes)}"
            )
        self._name = policy
        self._profile = profile
        self._base = profile.table()
        self._beside: dict[Any, Mapping[str, list[float]]] = {
            t.residency_id: profile.beside(t.residency_id).table() for t in profile.residency
        }
        self._savings = _savings(profile, self._base, self._beside)
        self._policies = [self._policy() for _ in range(num_workers)]
        self._resident: list[Keys] = [frozenset()] * num_workers
        self._batches = self._hits = self._loads = self._loaded_bytes = 0
        self._load_s = 0.0

    def fresh(self) -> SimulatedResidency:
        """Return the same with nothing resident and nothing counted, for another run."""
        return SimulatedResidency(
            self._profile,
            self._name,
            num_workers=len(self._policies),
            budget_bytes=self._budget_bytes,
        )

    def latency_s(self, worker_id: int, subnet_id: str, size: int) -> float:
        """Return what a batch takes on a worker, with the loading that it sets off."""
        base_s = self._base[subnet_id][size]
        resident = self._resident[worker_id]
        beside_s = [self._beside[key][subnet_id][size] for key in resident]
        seconds = min([base_s, *beside_s])
        self._batches += 1
        self._hits += seconds < base_s
        wanted = self._policies[worker_id].observe(subnet_id)
        if wanted is None:
            return seconds
        new = wanted - resident
        self._resident[worker_id] = wanted
        self._loads += len(new)
        self._loaded_bytes += self._savings.num_bytes(new)
        load_s = self._savings.load_s(new)
        self._load_s += load_s
        return seconds + load_s

    def summary(self) -> dict[str, Any]:
        """For a report: hits are batches that ran faster than with nothing resident."""
        return {
            "policy": self._name,
            "budget_bytes": self._budget_bytes,
            "batches": self._batches,
            "hit_rate": self._hits / self._batches if self._batches else 0.0,
            "loads": self._loads,
            "loaded_bytes": self._loaded_bytes,
            "load_s": self._load_s,
        }

    def _policy(self) -> ResidencyPolicy:
        profile = self._profile
        if self._name == "value":
            return ValuePerByte(self._savings, self._budget_bytes)
        if self._name == "static":
            mix = dict.fromkeys(profile.subnet_ids, 1.0 / len(profile.subnet_ids))
            return FixedResidency(self._savings.fill(mix, self._budget_bytes))
        encodings = {s.subnet_id: s.extra.get("encoding") for s in profile.subnets}
        tables = [t for t in profile.residency if t.num_bytes <= self._budget_bytes]
        lacking = [i for i, e in encodings.items() if e is None]
        lacking += [t.residency_id for t in tables if not t.encoding]
        if lacking:
            raise ProfileError(
                f"profile {profile.name!r} has no encoding of {', '.join(lacking)}, which "
                "sushisched compares; measure it with `supernet profile --residency MIB`"
            )
        subgraphs = [
            EncodedSubgraph(np.asarray(t.encoding, dtype=np.float64), frozenset({t.residency_id}))
            for t in tables
            if t.residency_id in self._savings.candidates
        ]
        vectors = {i: np.asarray(e, dtype=np.float64) for i, e in encodings.items()}
        return NearestAverage(vectors, subgraphs)


def _savings(
    profile: LatencyProfile,
    base: Mapping[str, list[float]],
    beside: Mapping[Any, Mapping[str, list[float]]],
) -> Savings:
    """Seconds that each subgraph saves each subnet at the smallest profiled batch."""
    size = profile.batch_sizes[0]
    return Savings(
        Candidate(
            key=table.residency_id,
            site=_SITE,
            num_bytes=table.num_bytes,
            load_s=table.load_s,
            saved_s={
                i: base[i][size] - beside[table.residency_id][i][size]
                for i in profile.subnet_ids
                if beside[table.residency_id][i][size] < base[i][size]
            },
        )
        for table in profile.residency
        if table.num_bytes > 0
    )
