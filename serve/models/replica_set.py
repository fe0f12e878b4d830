"""`ReplicaSet`: addresses of a server's replicas, this one among them: what clients spread over.

They come from the settings (`replica_urls`), or on Ray from the replicas themselves
(`hosts/ray_registry.py`). Answers carry a tag of the list, so that clients read it again when it
changes, and only then.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable


class ReplicaSet:
    """URLs (`http://`, `https://`, `grpc://`, `grpcs://`); none for a server that is alone."""

    def __init__(self, urls: Iterable[str] = ()) -> None:
        self.use(urls)

    def use(self, urls: Iterable[str]) -> None:
        """Name these from now on."""
        self.urls: tuple[str, ...] = tuple(sorted(set(urls)))
        several = any(len(urls) > 1 for urls in self.named().values())
        #: Differs from list to list; empty where there is nothing to choose.
        self.tag = f"{zlib.crc32(' '.join(self.urls).encode()):08x}" if several else ""

    def named(self) -> dict[str, list[str]]:
        """Return the URLs of each protocol, `http` and `grpc`."""
        return {kind: [u for u in self.urls if u.startswith(kind)] for kind in ("http", "grpc")}
