"""`GraphCache`: optimised models on disk, so that a second start does not make them again.

A file is named by what it was made of and by the digest of what it holds:
`<key>.<sha256>.onnx`. It is written beside its place and renamed when whole, so two processes that
write at once leave two whole files, either of which serves; what was altered or cut off has
another digest and is made again. When the folder outgrows its limit, the files that were not used
for longest go.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

_LIMIT_BYTES = 16 * 2**30


class GraphCache:
    """A folder of model files by key. Safe to share between processes."""

    def __init__(self, folder: Path, limit_bytes: int = _LIMIT_BYTES):
        """Keep at most `limit_bytes` in `folder`, which is made when something is kept."""
        if limit_bytes < 0:
            raise ValueError(f"limit_bytes is {limit_bytes}, allowed 0 or more")
        self._folder = folder
        self._limit_bytes = limit_bytes

    def find(self, key: str) -> Path | None:
        """Return the whole file of `key`, None where there is none; spoilt ones are removed."""
        for path in self._folder.glob(f"{key}.*.onnx"):
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                if path.name == f"{key}.{_digest(path)}.onnx":
                    os.utime(path)  # used now
                    return path
                path.unlink()
        return None

    def keep(self, key: str, write: Callable[[Path], object]) -> Path | None:
        """Have `write` make a file and keep it; None where it does not fit the limit.

        Raises what `write` raises, and OSError when the disk refuses.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".writing-", dir=self._folder) as temporary:
            partial = Path(temporary) / "model.onnx"
            write(partial)
            size = partial.stat().st_size
            if size > self._limit_bytes:
                return None
            self._make_room(size)
            return partial.replace(self._folder / f"{key}.{_digest(partial)}.onnx")

    def forget(self, key: str) -> None:
        """Remove what is kept of `key`, so that something else may be."""
        for path in self._folder.glob(f"{key}.*.onnx"):
            path.unlink(missing_ok=True)

    def _make_room(self, wanted_bytes: int) -> None:
        """Remove the files that were not used for longest until `wanted_bytes` fit."""
        found: list[tuple[float, int, Path]] = []
        for path in self._folder.glob("*.onnx"):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        held_bytes = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if held_bytes + wanted_bytes <= self._limit_bytes:
                return
            path.unlink(missing_ok=True)
            held_bytes -= size


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
