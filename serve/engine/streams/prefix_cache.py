"""`PrefixCache`: which beginnings of prompts are computed already, and by which quality.

Whole blocks of tokens are found by a hash chained over all blocks before them (vLLM's automatic
prefix caching). An entry says what the worst width was that computed any of it: a prompt takes an
entry only where that is as good as what would compute it now, so a burst that was served narrowly
leaves nothing behind that makes later texts worse. Tenants have entries of their own: how soon a
first token comes does not tell one what another has asked.

What is held are sequences of the device's cache; they share blocks with streams that use them, and
give way, the least recently used first, when the device needs room. An entry that a stream was
promised stays until the stream has begun.
"""

from __future__ import annotations

import itertools
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

MOST_ENTRIES = 256


class SharedPrefix(NamedTuple):
    """The first `tokens` of a prompt are those of `source`, a sequence that the executor keeps."""

    source: int | str
    tokens: int


class PrefixCounts(NamedTuple):
    """Prompt tokens that were looked up, those of them that were found, and entries held."""

    queried_tokens: int = 0
    hit_tokens: int = 0
    entries: int = 0


class _PrefixEntry:
    __slots__ = ("is_lost", "keys", "name", "pins", "quality", "tokens")

    def __init__(self, name: str, keys: list[bytes], tokens: int, quality: float) -> None:
        self.name, self.keys, self.tokens, self.quality = name, keys, tokens, quality
        self.pins = 0
        self.is_lost = False


class PrefixCache:
    """Finds on the loop's thread (`pin`), keeps and evicts on the device's."""

    def __init__(
        self, block_tokens: int, qualities: Mapping[str, float], most_entries: int = MOST_ENTRIES
    ) -> None:
        """Hold nothing; `qualities` are those of the widths."""
        self.block_tokens = block_tokens
        self.qualities = dict(qualities)
        self._most_entries = most_entries
        self._entries: OrderedDict[str, _PrefixEntry] = (
            OrderedDict()
        )  # the least recently used first
        self._by_key: dict[bytes, _PrefixEntry] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._queried = self._hit = 0

    def counts(self) -> PrefixCounts:
        """Return what was looked up and found so far."""
        return PrefixCounts(self._queried, self._hit, len(self._entries))

    def pin(self, prompt: Sequence[int], tenant: str, quality: float) -> SharedPrefix | None:
        """Return the longest beginning of a prompt that is held, and hold on to it.

        At least `quality` computed it, and a token of the prompt is left to compute. `unpin` it
        once it was shared, or is not wanted.
        """
        keys = self._keys(prompt[:-1], tenant)
        with self._lock:
            self._queried += len(prompt)
            for count in range(len(keys), 0, -1):
                entry = self._by_key.get(keys[count - 1])
                if entry is not None and entry.quality >= quality:
                    entry.pins += 1
                    self._entries.move_to_end(entry.name)
                    self._hit += count * self.block_tokens
                    return SharedPrefix(entry.name, count * self.block_tokens)
        return None

    def quality_of(self, name: int | str) -> float:
        """Return the worst quality that computed any of an entry; 1 for what is none."""
        with self._lock:
            entry = self._entries.get(str(name))
            return 1.0 if entry is None else entry.quality

    def unpin(self, name: int | str) -> None:
        """Give up a pin of `pin`'s; a name that is of no entry is no error."""
        with self._lock:
            entry = self._entries.get(str(name))
            if entry is not None:
                entry.pins -= 1

    def keep(
        self,
        prompt: Sequence[int],
        tenant: str,
        quality: float,
        share: Callable[[str, int], None],
    ) -> list[str]:
        """Keep a prompt that was computed; return the entries to release instead.

        `share(name, tokens)` begins the sequence that holds it. One that is held already, as good
        or better, is only noted as used.
        """
        keys = self._keys(prompt, tenant)
        if not keys:
            return []
        with self._lock:
            held = self._by_key.get(keys[-1])
            if held is not None and held.quality >= quality:
                self._entries.move_to_end(held.name)
                return []
            tokens = len(keys) * self.block_tokens
            entry = _PrefixEntry(f"prefix-{next(self._numbers)}", keys, tokens, quality)
            share(entry.name, tokens)
            self._entries[entry.name] = entry
            for key in keys:
                before = self._by_key.get(key)
                if before is None or before.quality <= quality:
                    self._by_key[key] = entry
            names = []
            while len(self._entries) > self._most_entries and (name := self._pop()):
                names.append(name)
            return names

    def evict(self) -> str | None:
        """Forget the least recently used entry that nobody was promised; return its name."""
        with self._lock:
            return self._pop()

    def take_back(self) -> str | None:
        """Give up the least recently used entry that somebody was promised; return its name.

        `is_lost` says so to whom it was promised, as of `forget`.
        """
        with self._lock:
            promised = (each for each in self._entries.values() if each.pins and not each.is_lost)
            entry = next(promised, None)
            if entry is None:
                return None
            self._lose(entry)
            return entry.name

    def is_lost(self, name: int | str) -> bool:
        """Whether the keys and values of an entry are gone, which a stream was promised."""
        with self._lock:
            entry = self._entries.get(str(name))
            return entry is not None and entry.is_lost

    def forget(self, names: Collection[int | str]) -> list[str]:
        """Offer entries to nobody any more, whose keys and values are gone; return whom to release.

        One that a stream was promised goes when that has begun, as the first to be evicted, and
        `is_lost` says meanwhile that it had better begin without.
        """
        released: list[str] = []
        with self._lock:
            for name in names:
                entry = self._entries.get(str(name))
                if entry is None:
                    continue
                if entry.pins:
                    self._lose(entry)
                else:
                    self._unlist(entry)
                    del self._entries[entry.name]
                    released.append(entry.name)
        return released

    def _lose(self, entry: _PrefixEntry) -> None:
        self._unlist(entry)
        entry.is_lost = True
        self._entries.move_to_end(entry.name, last=False)

    def _pop(self) -> str | None:
        entry = next((entry for entry in self._entries.values() if not entry.pins), None)
        if entry is None:
            return None
        del self._entries[entry.name]
        self._unlist(entry)
        return entry.name

    def _unlist(self, entry: _PrefixEntry) -> None:
        for key in entry.keys:
            if self._by_key.get(key) is entry:
                del self._by_key[key]

    def _keys(self, ids: Sequence[int], tenant: str) -> list[bytes]:
        """Return the chained hash of each whole block."""
        size, key = self.block_tokens, blake2b(tenant.encode(), digest_size=16).digest()
        keys: list[bytes] = []
        for at in range(0, len(ids) - size + 1, size):
            block = array("q", ids[at : at + size]).tobytes()
            key = blake2b(block, digest_size=16, key=key).digest()
            keys.append(key)
        return keys
