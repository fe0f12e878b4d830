"""`SessionStore`: compiled subnets resident under a byte budget, whole and each for itself.

SubGraph Stationary (SUSHI, MLSys'23) on a CPU: what is resident is a session, the fastest form of a
subnet there; onnxruntime shares nothing between sessions. An int8 subnet whose session is not
resident is served by its float twin's, where that is. Thread-safe; a session that is evicted
lives until the batch that runs on it has ended.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

from subnetact.cpu.compiled_session import CompiledSession
from supernet.served_form import ServedForm

Open = Callable[[ServedForm], CompiledSession]


class Found(NamedTuple):
    """A resident session, and which form it is of."""

    session: CompiledSession
    form: ServedForm


class SessionStore:
    """Resident sessions by form id, at most `budget_bytes` of them (None: no limit)."""

    def __init__(
        self, open_session: Open, num_bytes: dict[str, int], budget_bytes: int | None = None
    ):
        """`num_bytes` says what the session of each form holds.

        Raises ValueError for a budget below zero.
        """
        if budget_bytes is not None and budget_bytes < 0:
            raise ValueError(f"budget_bytes is {budget_bytes}, allowed 0 or more, or None")
        self.budget_bytes = budget_bytes
        self.num_bytes = num_bytes
        self.open_session = open_session
        self._lock = threading.Lock()
        self._sessions: dict[str, CompiledSession] = {}
        self._hits = self._misses = self._twins = 0
        self._loads = self._evictions = self._refusals = 0
        self._has_warned = False

    @property
    def resident(self) -> frozenset[str]:
        """Ids of the forms whose sessions are resident."""
        with self._lock:
            return frozenset(self._sessions)

    @property
    def held_bytes(self) -> int:
        """Bytes of the resident sessions."""
        with self._lock:
            return self._held_bytes()

    def find(self, form: ServedForm) -> Found | None:
        """Return what is resident to run a form on, and count whether it was; None: views."""
        with self._lock:
            for candidate in dict.fromkeys((form, form.twin)):
                session = self._sessions.get(candidate.form_id)
                if session is not None:
                    self._hits += candidate == form
                    self._twins += candidate != form
                    self._misses += candidate != form
                    return Found(session, candidate)
            self._misses += 1
            return None

    def load(self, key: Hashable) -> bool:
        """Make the session of a form resident; False where the budget or memory has no room.

        A session that can't be made, for whatever reason its library gives, is warned of once;
        its subnet is served without.
        """
        form_id = str(key)
        with self._lock:
            if form_id in self._sessions:
                return True
            wanted = self._held_bytes() + self.num_bytes[form_id]
            if self.budget_bytes is not None and wanted > self.budget_bytes:
                self._refusals += 1
                return False
        try:
            session = self.open_session(ServedForm.parse(form_id))
        except (MemoryError, OSError, ValueError, RuntimeError) as error:
            self._warn(form_id, error)
            return False
        with self._lock:
            self._sessions[form_id] = session
            self._loads += 1
        return True

    def evict_others(self, keep: Iterable[Hashable]) -> int:
        """Evict what is not in `keep`; return how many sessions."""
        kept = set(map(str, keep))
        with self._lock:
            dropped = [form_id for form_id in self._sessions if form_id not in kept]
            gone = [self._sessions.pop(form_id) for form_id in dropped]
            self._evictions += len(gone)
        return len(gone)

    def counts(self) -> dict[str, int]:
        """Return what was looked up, loaded and evicted, and the bytes held."""
        with self._lock:
            return {
                "hits": self._hits,
                "misses": self._misses,
                "loads": self._loads,
                "evictions": self._evictions,
                "held_bytes": self._held_bytes(),
                "graphs_resident": len(self._sessions),
                "graphs_openvino": sum(s.engine == "openvino" for s in self._sessions.values()),
                "graph_refusals": self._refusals,
                "int8_by_float": self._twins,
            }

    def _held_bytes(self) -> int:
        return sum(self.num_bytes[form_id] for form_id in self._sessions)

    def _warn(self, form_id: str, error: Exception) -> None:
        with self._lock:
            self._refusals += 1
            is_first, self._has_warned = not self._has_warned, True
        if is_first:
            warnings.warn(
                f"no graph for {form_id} ({error}); it and others that have none are served by "
                "views, slower, with the same results",
                RuntimeWarning,
                stacklevel=3,
            )
