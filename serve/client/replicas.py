"""`Replicas`: which of a server's replicas a client asks next, and which there are.

A client begins with the addresses that it was given. Where answers carry the tag of a list of
replicas, it reads that list from the server's metadata, and again whenever the tag changes; the
addresses given are spare ones from then on. How it chooses: `slackfit.spreading`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from serve.client.addresses import SCHEMES, TAKEN, whole_url
from serve.client.rest_answers import ClientError, mapping
from serve.proto.names import REPLICAS
from slackfit.spreading import Outlook, Spreading

_LOOKS_APART_S = 1.0


class Chooser(Protocol):
    """What `Replicas` asks: `Spreading`, or another rule."""

    def use(self, names: Sequence[str], *, spare: Sequence[str] = ...) -> None: ...
    def choose(self, now_s: float) -> str: ...
    def answered(self, name: str, now_s: float, told: Outlook | None = None) -> None: ...
    def failed(self, name: str, now_s: float) -> None: ...
    def forgotten(self, name: str) -> None: ...
    def has_sound(self, now_s: float) -> bool: ...


class Replicas:
    """The addresses in use; threads may share one."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        follows: bool = True,
        chooser: Chooser | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with the given addresses; `follows`: also go to those that the server names.

        Raises ClientError for addresses that no client takes, or that speak different protocols.
        """
        self._given = tuple(dict.fromkeys(url.rstrip("/") for url in urls))
        self._scheme = _common_scheme(self._given)
        self._follows = follows
        self._chooser: Chooser = Spreading() if chooser is None else chooser
        self._clock = clock
        self._lock = threading.Lock()
        self._tag = ""
        self._looked_s = -_LOOKS_APART_S
        self._chooser.use(self._given)
        self.urls = self._given

    @property
    def given(self) -> tuple[str, ...]:
        """The addresses that the client was made with."""
        return self._given

    @property
    def scheme(self) -> str:
        """What every address begins with."""
        return self._scheme

    def choose(self) -> str:
        """Return whom to ask now; exactly one of the methods below says how that ended."""
        with self._lock:
            return self._chooser.choose(self._clock())

    def answered(
        self, url: str, finish_s: float | None = None, capacity_qps: float | None = None
    ) -> None:
        """Note that a replica has answered, and what it told of itself."""
        with self._lock:
            told = None if finish_s is None else Outlook(finish_s, capacity_qps or 0.0)
            self._chooser.answered(url, self._clock(), told)

    def failed(self, url: str) -> None:
        """Note that a replica is gone, drains or is sick: it is left for a while."""
        with self._lock:
            self._chooser.failed(url, self._clock())

    def forgotten(self, url: str) -> None:
        """Note that nobody waits for an answer any more."""
        with self._lock:
            self._chooser.forgotten(url)

    def has_other(self) -> bool:
        """Whether a replica is there that has not failed last: a retry need not wait."""
        with self._lock:
            return len(self.urls) > 1 and self._chooser.has_sound(self._clock())

    def should_look(self, tag: str) -> bool:
        """Return whether to read the list now, of which an answer carried the tag.

        One caller is told so at a time, once a second at most; it calls `name` with what it found.
        """
        if not self._follows or not tag or tag == self._tag:
            return False
        with self._lock:
            now_s = self._clock()
            if now_s - self._looked_s < _LOOKS_APART_S:
                return False
            self._looked_s = now_s
            return True

    def name(self, server: Mapping[str, Any], tag: str) -> None:
        """Use the replicas that a server's metadata name, where they speak the same protocol."""
        kind = "grpc" if self._scheme.startswith("grpc") else "http"
        listed = mapping(server.get(REPLICAS)).get(kind)
        urls = [
            str(url).rstrip("/")
            for url in (listed if isinstance(listed, list) else [])
            if str(url).startswith(self._scheme)
        ]
        with self._lock:
            self._tag = tag
            self.urls = tuple(dict.fromkeys((*urls, *self._given)))
            self._chooser.use(urls or self._given, spare=self._given)


def split_urls(url: str | Sequence[str]) -> tuple[str, ...]:
    """Return the addresses in a text with commas, or in a sequence."""
    texts = url.split(",") if isinstance(url, str) else url
    return tuple(whole_url(text.strip()) for text in texts)


def _common_scheme(urls: Sequence[str]) -> str:
    schemes = {next((s for s in SCHEMES if url.startswith(s)), "") for url in urls}
    if not urls or "" in schemes:
        raise ClientError(f"{', '.join(urls)}: not a URL of a server; give {', '.join(TAKEN)}")
    if len(schemes) > 1:
        raise ClientError(f"{', '.join(urls)}: give addresses of one protocol")
    return schemes.pop()
