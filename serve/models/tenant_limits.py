"""`TenantLimits`: what one tenant of a shared server may ask for.

A tenant is whom the service is shared with: a team, a customer. It is not a priority: under
overload it gets its share of device time, whatever classes its queries have. Priorities, pins and
long SLOs are wishes at the others' expense, and are limited when a request is read; rates at the
door; the share where batches are composed.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from serve.models.limits import RefusedError


class TenantLimits(NamedTuple):
    """The limits of one tenant; as made, of a tenant that nothing was said of: none.

    `share` is the fraction of device time that it is owed while others want it too (None: what
    those with one leave, in equal parts). `highest_priority` is the highest that it may ask for: 1
    (any), 2 and so on, 0 for the default class only. `longest_slo_s` bounds its SLO.
    """

    name: str = ""
    rate_qps: float | None = None
    rate_burst: float | None = None
    share: float | None = None
    highest_priority: int = 1
    may_pin: bool = True
    longest_slo_s: float = inf

    def check_wishes(self, priority: int, subnet_id: str | None) -> None:
        """Raise RefusedError, `forbidden`, for a class or a pin that the tenant may not have."""
        highest = self.highest_priority
        if priority and (not highest or priority < highest):
            allowed = f"0, or {highest} and lower (larger numbers)" if highest else "0"
            raise self._forbidden("parameter priority", priority, allowed)
        if subnet_id is not None and not self.may_pin:
            raise self._forbidden("the pinned subnet", subnet_id, "none: leave the choice open")

    def check_slo(self, slo_s: float | None) -> None:
        """Raise RefusedError, `forbidden`, for an SLO that is longer than the tenant may name.

        Time-outs are no promise of the server, and not judged: the longest SLO holds beside them.
        """
        if slo_s is not None and slo_s > self.longest_slo_s:
            raise self._forbidden(
                "the SLO in milliseconds",
                f"{slo_s * 1e3:g}",
                f"{self.longest_slo_s * 1e3:g} or less",
            )

    def _forbidden(self, what: str, given: object, allowed: str) -> RefusedError:
        text = f"{what} is {given!s:.80}, allowed tenant {self.name!r}: {allowed}"
        return RefusedError("forbidden", text)


NO_LIMITS = TenantLimits()
