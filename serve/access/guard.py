"""`Guard`: who is asking, whether they may, and whether they ask too often; the same at both doors.

Without tokens everybody may infer and look, and whoever calls from this host may administer. With
tokens every call but the health checks needs one that opens its scope. The principal that rates are
kept for is the token's name, else the address (of IPv6 the /64 network: a host has all of it): that
of the connection, or the one that a trusted proxy names.
"""

from __future__ import annotations

import functools
import ipaddress
import time
import urllib.parse
from collections.abc import Iterable
from typing import NamedTuple

from serve.access.rate_limits import Rates
from serve.access.tenants import Tenants
from serve.access.tokens import Token, Tokens
from serve.models.limits import RefusedError
from serve.models.tenant_limits import TenantLimits

_BEARER = "bearer "
_OWN_HOST = ("admin", "audit")  # scopes that without tokens only this host has
UNIX = "unix:"
"""How the address of a UNIX socket begins, a server's and, without a path, a client's."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Caller(NamedTuple):
    """Who asks: the principal that rates are kept for, the tenant whose limits hold, the scopes.

    Without tokens there are no scopes.
    """

    principal: str = ""
    tenant: TenantLimits = TenantLimits()
    scopes: frozenset[str] = frozenset()


class Guard:
    """Checks calls; as made it lets everybody in, and only this host administer."""

    def __init__(
        self,
        tokens: Tokens | None = None,
        rates: Rates | None = None,
        *,
        tenants: Tenants | None = None,
        trusted_proxies: Iterable[Network] = (),
        tenant_header: str | None = None,
    ) -> None:
        self._tokens = tokens
        self._rates = rates
        self._tenants = tenants or Tenants((), time.monotonic)
        self._proxies = tuple(trusted_proxies)
        self.tenant_header = tenant_header

    def identify(
        self,
        scope: str,
        *,
        authorization: str | None,
        peer: str,
        origin: str | None = None,
        forwarded: str | None = None,
        host: str | None = None,
        tenant: str | None = None,
    ) -> Caller:
        """Return who calls `scope` of `tokens.SCOPES`. Raises RefusedError.

        A browser names in `origin` the page it acts for, and in `host` the name that it resolved:
        without tokens neither a page nor another name than this host's own may administer.
        `forwarded` is `X-Forwarded-For`, `tenant` what the header for tenants says.
        """
        if self._tokens is not None:
            token = self._token(scope, authorization)
            tenant_of = self._tenants.find(token.tenant, tenant)
            return Caller(f"token {token.name}", tenant_of, token.opens)
        if scope in _OWN_HOST:
            is_strange = origin is not None or forwarded is not None or not is_own_name(host)
            if is_strange or not is_loopback(peer):
                raise RefusedError("forbidden", "without tokens only this host may do that")
        address = client_address(peer, forwarded, self._proxies)
        return Caller(_network(address), self._tenants.find(None, tenant))

    def memory_owner(self, caller: Caller, *, peer: str, forwarded: str | None = None) -> str:
        """Return whose shared memory a caller's is: of those on this host, or with its token.

        Raises RefusedError, `forbidden`, for who is on another host.
        """
        if forwarded is not None or not is_loopback(peer):
            text = "shared memory is for clients on the server's own host: send the tensor"
            raise RefusedError("forbidden", text)
        return "" if self._tokens is None else caller.principal

    def admit(self, caller: Caller) -> None:
        """Count a request before its body is read. Raises RefusedError: `rate_limited`."""
        wait_s = 0.0 if self._rates is None else self._rates.take(caller.principal)
        if wait_s:
            raise RefusedError("rate_limited", "too many requests", retry_after_s=wait_s)
        wait_s = self._tenants.take(caller.tenant)
        if wait_s:
            text = f"too many requests of tenant {caller.tenant.name!r}"
            raise RefusedError("rate_limited", text, retry_after_s=wait_s)

    def charge(self, caller: Caller, num_samples: int) -> None:
        """Count the samples of an admitted request beyond the first."""
        if num_samples > 1:
            if self._rates is not None:
                self._rates.charge(caller.principal, num_samples - 1)
            self._tenants.charge(caller.tenant, num_samples - 1)

    def _token(self, scope: str, authorization: str | None) -> Token:
        assert self._tokens is not None, "asked for where there are tokens"
        if authorization is None or not authorization.lower().startswith(_BEARER):
            raise RefusedError(
                "unauthenticated", "this needs a bearer token (Authorization header)"
            )
        token = self._tokens.find(authorization[len(_BEARER) :].strip())
        if token is None:
            raise RefusedError("unauthenticated", "the bearer token is not known here")
        if not token.allows(scope):
            raise RefusedError("forbidden", f"the token may not do that: its scope lacks {scope!r}")
        return token


def is_loopback(host: str) -> bool:
    """Whether an address is this host's own: the name `localhost`, a UNIX socket (`unix:...`)."""
    if host == "localhost" or host.startswith(UNIX):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_own_name(host: str | None) -> bool:
    """Whether a `Host` header is an address, or `localhost`: a name of DNS may be anybody's."""
    if host is None:
        return True
    name = urllib.parse.urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def client_address(peer: str, forwarded: str | None, proxies: Iterable[Network]) -> str:
    """Return who speaks through trusted proxies: the last of `X-Forwarded-For` that is none.

    Each proxy adds the address that it sees at the end; what stands before the first that is not
    trusted was written by whoever wanted to.
    """
    trusted = tuple(proxies)
    hops = [] if forwarded is None else [hop.strip() for hop in forwarded.split(",")]
    while hops and _is_in(peer, trusted):
        hop = _without_port(hops.pop())
        if not _is_address(hop):
            break
        peer = hop
    return peer


def address_of(peer: str) -> str:
    """Return the address in a gRPC peer, such as `ipv4:10.0.0.7:5012` or `ipv6:[::1]:5012`."""
    kind, _, rest = urllib.parse.unquote(peer).partition(":")
    if kind == "unix":
        return UNIX
    if kind not in ("ipv4", "ipv6"):
        return peer
    return rest.rpartition(":")[0].strip("[]")


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_in(peer: str, networks: tuple[Network, ...]) -> bool:
    if not networks or not _is_address(peer):
        return False
    address = ipaddress.ip_address(peer)
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in network for network in networks)


@functools.lru_cache(maxsize=4096)
def _network(peer: str) -> str:
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer
    if address.version == 4:
        return peer
    return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
