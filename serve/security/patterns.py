"""`PatternWatch`: what a principal's questions look like when they are an attack.

Patterns: `specification_scan` (many different specifications: a bisection), `repetition` (one input
again and again), `perturbed_repetition` (inputs that look the same and differ), `pin_attempt` (a
subnet named where none may be), `budget_spent`. A pattern is told once per principal and window,
with what was counted. Principals are tokens, so there are few; beyond `_MOST_PRINCIPALS` the one
that asked least recently is forgotten.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import NamedTuple

_MOST_PRINCIPALS = 1000
_MOST_KINDS = 4096  # of inputs that are told apart in a window
_SAME_SPECIFICATION_S = 1e-4


class Alert(NamedTuple):
    """Whose questions have which pattern: how many within the window, and how many may be."""

    principal: str
    pattern: str
    seen: int
    allowed: int


class _AskedLately:
    """What one principal asked in the present window."""

    def __init__(self, began_s: float) -> None:
        self.began_s = began_s
        self.specifications: set[tuple[float, int]] = set()
        self.inputs: Counter[bytes] = Counter()
        self.looks: dict[bytes, set[bytes]] = {}
        self.told: set[str] = set()


class PatternWatch:
    """Counts by principal; `tell` gets each alert. Used by one thread."""

    def __init__(
        self,
        *,
        window_s: float,
        max_specifications: int,
        max_repeats: int,
        clock: Callable[[], float],
        tell: Callable[[Alert], None],
    ) -> None:
        self._window_s = window_s
        self._max_specifications = max_specifications
        self._max_repeats = max_repeats
        self._clock = clock
        self._tell = tell
        self._by_principal: OrderedDict[str, _AskedLately] = OrderedDict()

    def specification(self, principal: str, min_accuracy: float, given_s: float) -> None:
        """Note a specification as it was given, served or not."""
        seen = self._seen(principal).specifications
        if len(seen) <= self._max_specifications:
            seen.add((min_accuracy, round(given_s / _SAME_SPECIFICATION_S)))
            self._check(principal, "specification_scan", len(seen), self._max_specifications)

    def input(self, principal: str, digest: bytes, look: bytes) -> None:
        """Note an input by its digest, and by what it looks like."""
        seen = self._seen(principal)
        if len(seen.inputs) > _MOST_KINDS:
            seen.inputs.clear()
            seen.looks.clear()
        seen.inputs[digest] += 1
        alike = seen.looks.setdefault(look, set())
        if len(alike) <= self._max_repeats:
            alike.add(digest)
        self._check(principal, "repetition", seen.inputs[digest], self._max_repeats)
        self._check(principal, "perturbed_repetition", len(alike), self._max_repeats)

    def attempt(self, principal: str, pattern: str) -> None:
        """Note what needs no counting."""
        self._check(principal, pattern, 1, 0)

    def _check(self, principal: str, pattern: str, count: int, allowed: int) -> None:
        if count > allowed:
            told = self._by_principal[principal].told if principal in self._by_principal else set()
            if pattern not in told:
                self._seen(principal).told.add(pattern)
                self._tell(Alert(principal, pattern, count, allowed))

    def _seen(self, principal: str) -> _AskedLately:
        now_s = self._clock()
        seen = self._by_principal.get(principal)
        if seen is None or now_s - seen.began_s > self._window_s:
            seen = self._by_principal[principal] = _AskedLately(now_s)
            if len(self._by_principal) > _MOST_PRINCIPALS:
                self._by_principal.popitem(last=False)
        self._by_principal.move_to_end(principal)
        return seen
