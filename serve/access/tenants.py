"""`Tenants`: the tenants that a server knows, by name, and which of them a call is for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

from serve.access.shared_rates import SharedRates, limits
from serve.config import ServeConfig, ServeConfigError, TenantConfig
from serve.models.limits import RefusedError
from serve.models.tenant_limits import TenantLimits

DEFAULT = "default"
"""The tenant of calls that name none, where one is configured by that name."""


class Tenants:
    """The configured tenants. Raises ServeConfigError for shares of more than the device."""

    def __init__(
        self,
        tenants: Iterable[TenantLimits],
        clock: Callable[[], float],
        shared: SharedRates | None = None,
    ) -> None:
        self._by_name = {tenant.name: tenant for tenant in tenants}
        shares = sum(tenant.share or 0.0 for tenant in self._by_name.values())
        if shares > 1.0 + 1e-9:
            raise ServeConfigError(f"tenants: the shares add up to {shares:g}, allowed 1 or less")
        self._rates = {
            name: limits(
                tenant.rate_qps,
                tenant.rate_burst or max(1.0, tenant.rate_qps),
                clock,
                shared,
                "tenant",
            )
            for name, tenant in self._by_name.items()
            if tenant.rate_qps is not None
        }

    @property
    def limits(self) -> dict[str, TenantLimits]:
        """The limits by the tenant's name."""
        return dict(self._by_name)

    def find(self, bound: str | None, named: str | None) -> TenantLimits:
        """Return the tenant of a call: `bound` to its token, or `named` in its header.

        Raises RefusedError, `forbidden`: one that is not known, or another than the token's.
        """
        if bound is not None and named is not None and named != bound:
            text = f"the token is of another tenant than {named!r:.80}"
            raise RefusedError("forbidden", text)
        name = bound if bound is not None else named
        if name is None:
            return self._by_name.get(DEFAULT, TenantLimits())
        found = self._by_name.get(name)
        if found is None:
            raise RefusedError("forbidden", f"tenant {name!r:.80} is not known here")
        return found

    def take(self, tenant: TenantLimits) -> float:
        """Charge one sample and return 0.0, or return the seconds until the rate allows it."""
        rates = self._rates.get(tenant.name)
        return 0.0 if rates is None else rates.take(tenant.name)

    def charge(self, tenant: TenantLimits, count: int) -> None:
        """Take `count` more samples off the tenant's rate."""
        rates = self._rates.get(tenant.name)
        if rates is not None:
            rates.charge(tenant.name, count)


def build_tenants(
    config: ServeConfig, clock: Callable[[], float], shared: SharedRates | None = None
) -> Tenants:
    """Return the tenants that `config` names. Raises ServeConfigError."""
    return Tenants((_limits(*item) for item in (config.tenants or {}).items()), clock, shared)


def _limits(name: str, given: TenantConfig) -> TenantLimits:
    return TenantLimits(
        name=name,
        rate_qps=given.rate_limit_qps,
        rate_burst=given.rate_limit_burst,
        share=given.share,
        highest_priority=given.highest_priority,
        may_pin=given.may_pin,
        longest_slo_s=inf if given.longest_slo_ms is None else given.longest_slo_ms * 1e-3,
    )
