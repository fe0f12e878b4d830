"""Output files: whole or not at all.

A file is written beside its place and moved there when it is complete, so that a run that fails or
is killed leaves what was there before. All packages but `supernet` write theirs with this.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield a temporary path beside `path`; move it there on success, remove it on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(out: str | Path, text: str) -> None:
    """Write to a file, whole or not at all, or to stdout for `-`."""
    if str(out) == "-":
        sys.stdout.write(text)
        return
    with replacing(Path(out)) as temporary:
        temporary.write_text(text, encoding="utf-8")
