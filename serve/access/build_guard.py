"""What a server shows to whom: its guard, and the refusal to open more than is configured."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from serve.access.guard import Guard, is_loopback
from serve.access.shared_rates import SharedRates, limits
from serve.access.tenants import Tenants, build_tenants
from serve.access.tls import tls_files
from serve.access.tokens import VARIABLE, RenewedTokens, Tokens, read_tokens
from serve.config import ServeConfig, ServeConfigError


def build_guard(
    config: ServeConfig, clock: Callable[[], float], shared: SharedRates | None = None
) -> Guard:
    """Return the guard of all doors; rates are `shared` with those of other processes.

    Raises ServeConfigError for what cannot or should not be served.
    """
    tenants = build_tenants(config, clock, shared)
    tokens = _tokens(config, tenants)
    if tokens is None and not is_loopback(config.host) and not config.allow_anonymous:
        raise ServeConfigError(
            f"host {config.host} lets others in and there are no tokens: give tokens_file or "
            f"{VARIABLE}, or set allow_anonymous=true if everybody there may ask"
        )
    if tokens is None and config.security is not None:
        raise ServeConfigError(
            "security without tokens: what is hidden from whom goes by their scopes; "
            f"give tokens_file or {VARIABLE}"
        )
    tls = tls_files(config)
    if tls is not None:
        tls.check()
    rates = None
    if config.rate_limit_qps is not None:
        burst = config.rate_limit_burst or max(1.0, config.rate_limit_qps)
        rates = limits(config.rate_limit_qps, burst, clock, shared, "principal")
    return Guard(
        tokens,
        rates,
        tenants=tenants,
        trusted_proxies=[ipaddress.ip_network(proxy) for proxy in config.trusted_proxies],
        tenant_header=config.tenant_header,
    )


def _tokens(config: ServeConfig, tenants: Tenants) -> Tokens | None:
    """Return the tokens, of a file as it is at any time. Raises ServeConfigError."""

    def check(tokens: Tokens) -> None:
        unknown = sorted(tokens.tenants() - tenants.limits.keys())
        if unknown:
            known = ", ".join(tenants.limits) or "none"
            text = f"a token names tenant {', '.join(unknown)}, which tenants lacks"
            raise ServeConfigError(f"{text} (it has: {known})")

    if config.tokens_file is not None:
        return RenewedTokens(config.tokens_file, check)
    tokens = read_tokens(None)
    if tokens is not None:
        check(tokens)
    return tokens
