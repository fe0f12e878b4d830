"""`Twins`: a policy as laid out for other profiles than its own.

The profile in a view changes with what is learned of the device and with the work of the most
urgent query. A policy is pure, so a copy of it on another profile is the same policy; laying one
out takes long beside a decision, so copies are kept.
"""

from __future__ import annotations

from copy import copy
from typing import Generic, Protocol, TypeVar

from slackfit.profile import LatencyProfile

_MAX_KEPT = 256


class LaidOut(Protocol):
    """A policy whose tables are made from one profile."""

    def lay_out(self, profile: LatencyProfile) -> None:
        """Make the tables anew."""
        ...


_Policy = TypeVar("_Policy", bound=LaidOut)


class Twins(Generic[_Policy]):
    """The copies of one policy, by profile."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        # A profile that is kept alive here shares its id with no other.
        self._kept: dict[int, tuple[LatencyProfile, _Policy]] = {}

    def of(self, policy: _Policy, profile: LatencyProfile) -> _Policy:
        """Return `policy` as laid out for `profile`."""
        known = self._kept.get(id(profile))
        if known is None:
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            twin = copy(policy)
            twin.lay_out(profile)
            known = self._kept[id(profile)] = (profile, twin)
        return known[1]
