"""`SharedMemory`: tensors in memory that clients on this host share, not sent (system extension).

A client registers a part of a POSIX shared memory object under a name, and requests name a slice of
that region in the place of an input's bytes, or for the output's. The object is opened by its key
for every use and read with `pread`, never mapped: an object that its owner shrinks would end a
server that has it mapped (SIGBUS), and one that changes while it is checked would not be what was
checked. That is one copy of the tensor; sending it is four.

A region belongs to who registered it: the clients on this host, or with tokens those with the same
token. Only objects directly in the system's folder for them can be named, that this server's user
may read and write.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from serve.models.limits import RefusedError
from serve.models.request import SharedSlice, bad

FOLDER = Path("/dev/shm")
_KEY = re.compile(r"/{0,2}(?!sem\.)([^/\0]{1,255})")  # `sem.` begins named semaphores
_MOST_REGIONS = 1024
_LONGEST_NAME = 256
_MOST_BYTES = 2**62


class Region(NamedTuple):
    """A registered part of a shared memory object, as status tells it."""

    name: str
    key: str
    offset: int
    byte_size: int


class RegionAccess(Protocol):
    """The regions of one caller."""

    def read(self, part: SharedSlice) -> bytearray: ...

    def check_room(self, part: SharedSlice, num_bytes: int) -> None: ...

    def write(self, part: SharedSlice, data: bytes | memoryview) -> None: ...


class SharedMemory:
    """The regions of a server, by owner and name; used in one event loop.

    `refused_because` says why none is served here; empty where they are.
    """

    def __init__(self, refused_because: str = "", *, folder: Path = FOLDER) -> None:
        self._refused_because = refused_because
        self._folder = folder
        self._regions: dict[tuple[str, str], Region] = {}

    def register(self, owner: str, name: str, key: object, offset: object, size: object) -> None:
        """Register a region. Raises RefusedError, `bad_request`: what is allowed."""
        if self._refused_because:
            raise RefusedError("bad_request", f"shared memory: {self._refused_because}")
        if (owner, name) in self._regions:
            text = f"region {name!r:.80} is registered already: unregister it first"
            raise RefusedError("bad_request", text)
        if len(self._regions) >= _MOST_REGIONS:
            text = f"{_MOST_REGIONS} regions are registered, which is the most: unregister some"
            raise RefusedError("bad_request", text)
        if not 0 < len(name) <= _LONGEST_NAME:
            raise bad("bad_request", "name", name, f"1 to {_LONGEST_NAME} characters")
        if type(offset) is not int or not 0 <= offset <= _MOST_BYTES:
            raise bad("bad_request", "offset", offset, "a whole number, 0 or more")
        if type(size) is not int or not 0 < size <= _MOST_BYTES:
            raise bad("bad_request", "byte_size", size, "a number of bytes, 1 or more")
        region = Region(name, _checked_key(key), offset, size)
        os.close(self._opened(region, "bad_request"))
        self._regions[owner, name] = region

    def unregister(self, owner: str, name: str = "") -> None:
        """Forget a region, or all of an owner's; one that is not there is forgotten."""
        for region in self.status(owner) if not name else ():
            del self._regions[owner, region.name]
        self._regions.pop((owner, name), None)

    def status(self, owner: str, name: str = "") -> list[Region]:
        """Return an owner's regions, or the one of that name. Raises RefusedError if it is none."""
        if not name:
            return [region for (whose, _), region in self._regions.items() if whose == owner]
        return [self._find(owner, name)]

    def table(self) -> list[tuple[str, Region]]:
        """Return every region with its owner."""
        return [(owner, region) for (owner, _), region in self._regions.items()]

    def use(self, table: Iterable[tuple[str, Region]]) -> None:
        """Know these regions and no others: those of another process of the same server."""
        self._regions = {(owner, region.name): region for owner, region in table}

    def of(
        self, owner: Callable[[], str], take: Callable[[int], None] = lambda _: None
    ) -> OwnedRegions:
        """Return what reads and writes an owner's regions.

        `owner` is asked once one is used, and may refuse; `take` may refuse so many bytes.
        """
        return OwnedRegions(self, owner, take)

    def open_slice(self, owner: str, part: SharedSlice) -> tuple[int, int]:
        """Return an open file and where in it a slice begins. Raises RefusedError, `bad_tensor`."""
        region = self._find(owner, part.region, "bad_tensor")
        end = part.offset + part.num_bytes
        if end > region.byte_size:
            text = f"bytes {part.offset} to {end} of region {region.name!r:.80} are named"
            raise RefusedError("bad_tensor", f"{text}, which has {region.byte_size}")
        return self._opened(region, "bad_tensor"), region.offset + part.offset

    def _find(self, owner: str, name: str, reason: str = "bad_request") -> Region:
        region = self._regions.get((owner, name))
        if region is None:
            names = ", ".join(sorted(region.name for region in self.status(owner))[:16])
            text = f"region {name!r:.80} is not registered, registered: {names or 'none'}"
            raise RefusedError(reason, text)
        return region

    def _opened(self, region: Region, reason: str) -> int:
        """Open the object of a region, which has to hold all of it. Raises RefusedError."""
        what = f"region {region.name!r:.80}: shared memory object {region.key!r:.80}"
        path = self._folder / region.key.lstrip("/")
        try:
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            file = os.open(path, flags)
        except OSError as error:
            raise RefusedError(reason, f"{what} can't be opened: {error.strerror}") from None
        except ValueError:
            raise RefusedError(reason, f"{what} can't be opened: no name of a file") from None
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            os.close(file)
            raise RefusedError(reason, f"{what} is none")
        end = region.offset + region.byte_size
        if about.st_size < end:
            os.close(file)
            text = f"{what} has {about.st_size} bytes, the region needs {end}"
            raise RefusedError(reason, text)
        return file


class OwnedRegions:
    """One caller's view of the regions."""

    def __init__(
        self, memory: SharedMemory, owner: Callable[[], str], take: Callable[[int], None]
    ) -> None:
        self._memory = memory
        self._owner = owner
        self._take = take

    def read(self, part: SharedSlice) -> bytearray:
        """Return a copy of a slice. Raises RefusedError, `bad_tensor`."""
        self._take(part.num_bytes)
        data = bytearray(part.num_bytes)
        view = memoryview(data)
        with self._opened(part) as (file, start):
            done = 0
            while done < len(data):
                count = os.preadv(file, [view[done:]], start + done)
                if not count:
                    text = f"region {part.region!r:.80} became shorter while it was read"
                    raise RefusedError("bad_tensor", text)
                done += count
        return data

    def check_room(self, part: SharedSlice, num_bytes: int) -> None:
        """Raise RefusedError, `bad_tensor`, unless the output fits into a slice."""
        if part.num_bytes < num_bytes:
            text = f"shared_memory_byte_size is {part.num_bytes}, the output needs {num_bytes}"
            raise RefusedError("bad_tensor", text)
        with self._opened(part):
            pass

    def write(self, part: SharedSlice, data: bytes | memoryview) -> None:
        """Write an output to a slice. Raises RefusedError, `bad_tensor`."""
        view = memoryview(data)
        with self._opened(part) as (file, start):
            done = 0
            while done < len(data):
                try:
                    done += os.pwrite(file, view[done:], start + done)
                except OSError as error:
                    text = f"region {part.region!r:.80} can't be written: {error.strerror}"
                    raise RefusedError("bad_tensor", text) from None

    @contextlib.contextmanager
    def _opened(self, part: SharedSlice) -> Iterator[tuple[int, int]]:
        file, start = self._memory.open_slice(self._owner(), part)
        try:
            yield file, start
        finally:
            os.close(file)


NO_REGIONS: RegionAccess = SharedMemory().of(lambda: "")
"""Of who shares no memory."""


def _checked_key(key: object) -> str:
    """Return the key of a shared memory object as it was given. Raises RefusedError."""
    found = _KEY.fullmatch(key) if isinstance(key, str) else None
    if found is None or found.group(1) in (".", ".."):
        raise bad("bad_request", "key", key, "the name of a shared memory object, such as '/input'")
    return str(key)
