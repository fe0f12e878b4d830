"""`Standing`: whose queries go first when not all can be served: tenants' shares, then classes.

While there is room for everyone nobody's standing matters. When some must be given up, or the
queue is full, a tenant that had more than its share of the device's time in the last second stands
behind all that had not, whatever their classes: a tenant is not a priority, and no priority buys
another tenant's share. Among equals the lower class goes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from slackfit.query import Query
from slackfit.scheduling.tenant_shares import REST, TenantShares

Rank = tuple[bool, int]
"""Whether the tenant is within its share, and the class; the least is given up first."""


class Standing:
    """Counts of what waits, and the device time of each tenant that has a share."""

    def __init__(self, shares: Mapping[str, float] | None = None) -> None:
        """`shares`: fractions of the device's time by tenant; all others together have the rest.

        Raises ValueError for a share that is not above 0 and at most 1.
        """
        self._time = TenantShares(shares)
        self._kinds: Counter[tuple[str, int]] = Counter()  # queries, by tenant and class
        self.samples: Counter[str] = Counter()  # that wait, by tenant

    @property
    def shares(self) -> dict[str, float]:
        """The shares as given."""
        return self._time.shares

    def add(self, query: Query) -> None:
        """Count a query that waits from now on."""
        self._kinds[query.tenant, query.query_class] += 1
        self.samples[query.tenant] += query.samples

    def remove(self, query: Query) -> None:
        """Count a query that no longer waits."""
        kind, tenant = (query.tenant, query.query_class), query.tenant
        self._kinds[kind] -= 1
        self.samples[tenant] -= query.samples
        if not self._kinds[kind]:  # names are the clients': they must not pile up
            del self._kinds[kind]
        if not self.samples[tenant]:
            del self.samples[tenant]

    def charge(
        self, queries: Iterable[Query], batch_s: float, num_samples: int, now_s: float
    ) -> None:
        """Note that a batch of these takes `batch_s` of a device."""
        if self.shares:
            for query in queries:
                self._time.charge(query.tenant, batch_s * query.samples / num_samples, now_s)

    def ranks(self, now_s: float, num_workers: int) -> Ranks:
        """Return the standing of everyone at this moment."""
        if not self.shares:
            return EQUALS
        return Ranks(self.shares.keys(), self._time.within(now_s, num_workers))

    def lowest(self, ranks: Ranks, num_ordinary: int) -> Rank:
        """Return the lowest rank of what waits, beside `num_ordinary` that were not counted."""
        kinds: Iterator[tuple[str, int]] = iter(self._kinds)
        found = [ranks.of_kind(tenant, query_class) for tenant, query_class in kinds]
        if num_ordinary:
            found.append(ranks.of_kind("", 0))
        return min(found)


class Ranks:
    """The standing of queries at one moment.

    `named` tenants have a share of their own; those `within` theirs stand above the others.
    """

    __slots__ = ("_named", "_within")

    def __init__(self, named: Collection[str], within: Collection[str]) -> None:
        self._named = named
        self._within = within

    def of(self, query: Query) -> Rank:
        """Return the rank of a query."""
        return self.of_kind(query.tenant, query.query_class)

    def of_kind(self, tenant: str, query_class: int) -> Rank:
        """Return the rank of a tenant's queries of a class."""
        return (tenant if tenant in self._named else REST) in self._within, query_class


EQUALS = Ranks((), (REST,))
"""The standing where nobody has a share: classes alone."""
