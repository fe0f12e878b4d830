"""`Guard`: who is asking, whether they may, and whether they ask too often; the same at both doors.

Without tokens everybody may infer and look, and whoever calls from this host may administer. With
tokens every call but the health checks needs one that opens its scope. The principal that rates are
kept for is the token's name, else the address (of IPv6 the /64 network: a host has all of it).
"""

from __future__ import annotations

import ipaddress
import urllib.parse

from serve.access.rate_limits import RateLimits
from serve.access.tokens import Tokens
from serve.models.limits import RefusedError

_BEARER = "bearer "


class Guard:
    """Checks calls; as made it lets everybody in, and only this host administer."""

    def __init__(self, tokens: Tokens | None = None, rates: RateLimits | None = None) -> None:
        self._tokens = tokens
        self._rates = rates

    def identify(
        self, scope: str, *, authorization: str | None, peer: str, origin: str | None = None
    ) -> str:
        """Return the principal of a call to `scope` of `tokens.SCOPES`. Raises RefusedError.

        A browser names in `origin` the page it acts for: without tokens it may not administer.
        """
        if self._tokens is None:
            if scope == "admin" and (origin is not None or not is_loopback(peer)):
                raise RefusedError("forbidden", "without tokens only this host may do that")
            return _network(peer)
        if authorization is None or not authorization.lower().startswith(_BEARER):
            raise RefusedError(
                "unauthenticated", "this needs a bearer token (Authorization header)"
            )
        token = self._tokens.find(authorization[len(_BEARER) :].strip())
        if token is None:
            raise RefusedError("unauthenticated", "the bearer token is not known here")
        if not token.allows(scope):
            raise RefusedError("forbidden", f"the token may not do that: its scope lacks {scope!r}")
        return f"token {token.name}"

    def admit(self, principal: str) -> None:
        """Count a request before its body is read. Raises RefusedError: `rate_limited`."""
        wait_s = 0.0 if self._rates is None else self._rates.take(principal)
        if wait_s:
            raise RefusedError("rate_limited", "too many requests", retry_after_s=wait_s)

    def charge(self, principal: str, num_samples: int) -> None:
        """Count the samples of an admitted request beyond the first."""
        if self._rates is not None and num_samples > 1:
            self._rates.charge(principal, num_samples - 1)


def is_loopback(host: str) -> bool:
    """Whether an address, or the name `localhost`, is this host's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address_of(peer: str) -> str:
    """Return the address in a gRPC peer, such as `ipv4:10.0.0.7:5012` or `ipv6:[::1]:5012`."""
    kind, _, rest = urllib.parse.unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return peer
    return rest.rpartition(":")[0].strip("[]")


def _network(peer: str) -> str:
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer
    if address.version == 4:
        return peer
    return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
