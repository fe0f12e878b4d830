"""`TenantShares`: how much of a device's time tenants had of late, against what they are owed.

A window of ten parts slides over the past, so that a burst is held against a tenant for as long as
the window, and no longer. All tenants without a share have what the others leave, together.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

_PARTS = 10

REST = ""  # stands for all tenants without a share


class TenantShares:
    """The device time of each tenant that has a share; `shares` are as given."""

    def __init__(self, shares: Mapping[str, float] | None = None, *, window_s: float = 1.0) -> None:
        """`shares`: fractions of the device's time by tenant.

        Raises ValueError for a share that is not above 0 and at most 1.
        """
        self.shares = dict(shares or {})
        for tenant, share in self.shares.items():
            if not 0.0 < share <= 1.0:
                raise ValueError(
                    f"the share of tenant {tenant!r} is {share}, allowed more than 0, at most 1"
                )
        rest = max(0.0, 1.0 - sum(self.shares.values()))
        self._owed = {**self.shares, REST: rest} if self.shares else {}
        self._used_s: dict[str, dict[int, float]] = {key: {} for key in self._owed}
        self._window_s = window_s
        self._parts_per_s = _PARTS / window_s
        self._began_s = inf

    def key_of(self, tenant: str) -> str:
        """Return whose account a tenant's time is on: its own, or that of all without a share."""
        return tenant if tenant in self.shares else REST

    def charge(self, tenant: str, seconds: float, now_s: float) -> None:
        """Note that a tenant has the device for so long, from now on."""
        self._began_s = min(self._began_s, now_s)
        part = int(now_s * self._parts_per_s)
        used_s = self._used_s[self.key_of(tenant)]
        used_s[part] = used_s.get(part, 0.0) + seconds

    def within(self, now_s: float, num_workers: int = 1) -> frozenset[str]:
        """Return the accounts (`key_of`) that had no more than they are owed."""
        used = self.used(now_s, num_workers)
        return frozenset(key for key, part in used.items() if part <= self._owed[key])

    def used(self, now_s: float, num_workers: int = 1) -> dict[str, float]:
        """Return the part of the device's time that each account had in the window."""
        since = int(now_s * self._parts_per_s) - _PARTS
        known_s = max(now_s - self._began_s, 1 / self._parts_per_s)
        window_s = num_workers * min(known_s, self._window_s)
        for parts in self._used_s.values():
            for old in [part for part in parts if part <= since]:
                del parts[old]
        return {key: sum(parts.values()) / window_s for key, parts in self._used_s.items()}

    def served(self, now_s: float, num_workers: int = 1) -> dict[str, float]:
        """Return `used` in units of what each account is owed; inf of nothing."""
        used = self.used(now_s, num_workers)
        owed = self._owed
        return {key: part / owed[key] if owed[key] > 0.0 else inf for key, part in used.items()}
