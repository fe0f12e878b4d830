"""`EpsilonBudget`: what one principal's draws add up to in a window, and when that is enough.

Basic composition (Dwork and Roth, "The Algorithmic Foundations of Differential Privacy", 2014,
theorem 3.16): k different draws of epsilon each are k x epsilon together. A draw that is asked for
again is the same one and costs nothing, as far as it is remembered: the last `_REMEMBERED` of each
principal are; an older one is charged again, so that what is stated is never too little.
"""

from __future__ import annotations

from collections import OrderedDict

_REMEMBERED = 4096
_MOST_PRINCIPALS = 1000


class _Account:
    __slots__ = ("draws", "seen")

    def __init__(self) -> None:
        self.draws = 0
        self.seen: OrderedDict[bytes, None] = OrderedDict()


class EpsilonBudget:
    """Accounts by principal, for one window at a time; used by one thread."""

    def __init__(self, epsilon: float, limit: float | None) -> None:
        self._epsilon = epsilon
        self._limit = limit
        self._window = 0
        self._accounts: OrderedDict[str, _Account] = OrderedDict()

    def spend(self, principal: str, window: int, draw: bytes) -> bool:
        """Charge a draw; whether the budget had room for it."""
        account = self._account(principal, window)
        if draw in account.seen:
            account.seen.move_to_end(draw)
            return True
        if self._limit is not None and (account.draws + 1) * self._epsilon > self._limit + 1e-9:
            return False
        account.draws += 1
        account.seen[draw] = None
        if len(account.seen) > _REMEMBERED:
            account.seen.popitem(last=False)
        return True

    def spent(self, principal: str) -> float:
        """Return the epsilon that a principal's draws of this window compose to."""
        account = self._accounts.get(principal)
        return 0.0 if account is None else account.draws * self._epsilon

    def _account(self, principal: str, window: int) -> _Account:
        if window != self._window:
            self._window = window
            self._accounts.clear()
        account = self._accounts.get(principal)
        if account is None:
            account = self._accounts[principal] = _Account()
            # With a limit nobody is forgotten: it would be a way to get a fresh budget.
            if self._limit is None and len(self._accounts) > _MOST_PRINCIPALS:
                self._accounts.popitem(last=False)
        return account
