"""Numba's `njit` for a graph's loops, and whether it is there. Nothing of graphs else imports it.

What was compiled is kept in `compiled-nodes/` of the folder that `SUPERNET_CACHE_DIR` names, else
of the user's cache folder, so that only the first run waits for it; where none can be written it is
compiled at every start. Numba itself looks at the file of one function only, not at the files that
it calls; so the folder is named by a digest of all sources here and of the versions. Loops
elsewhere may call those here and in their own file. The folder is made for its owner alone, because
numba unpickles what it finds there. (`slackfit/compiled/jit.py` does the same for the scheduler.)
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_KEPT = 6  # folders of other sources or versions, the newest ones


def missing() -> str:
    """Return why nothing can be compiled here, as a sentence; empty where it can."""
    if not is_installed():
        return "numba is not installed (pip install 'supernet-serving[fast]')"
    return _import_fault()


def is_installed() -> bool:
    """Whether numba is there, be it broken."""
    return find_spec("numba") is not None


@cache
def _import_fault() -> str:
    try:
        import_module("numba")
    except Exception as error:  # a lagging NumPy, a library that won't load: of any type
        return f"numba does not import here: {error}"
    return ""


def compiled(function: Any, *, fastmath: bool = False) -> Any:
    """Return `function` as machine code that lets the interpreter go, from the cache if it can."""
    numba: Any = import_module("numba")
    options = {"nogil": True, "fastmath": fastmath}
    folder, before = _folder(), numba.config.CACHE_DIR
    if folder is not None:
        numba.config.CACHE_DIR = str(folder)
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no longer to be written, or the source is no file
            pass
        finally:
            numba.config.CACHE_DIR = before
    return numba.njit(**options)(function)


@cache
def _folder() -> Path | None:
    """Return where machine code is kept; None where no folder can be written."""
    named = os.environ.get("SUPERNET_CACHE_DIR")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    sources = fingerprint(Path(__file__).parent)
    folder = Path(named or Path(home) / "supernet") / "compiled-nodes" / sources
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_own = folder.stat().st_uid == os.getuid() if hasattr(os, "getuid") else True
        if not is_own or not os.access(folder, os.W_OK):
            return None
        os.utime(folder)
    except OSError:
        return None
    _forget_old(folder)
    return folder


def fingerprint(sources: Path) -> str:
    """Return a digest of what machine code depends on, other than the processor."""
    digest = hashlib.sha256()
    for path in sorted(sources.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for package in ("numba", "llvmlite", "numpy"):
        with suppress(PackageNotFoundError):
            digest.update(f"{package} {version(package)}\n".encode())
    digest.update(sys.version.encode())
    return digest.hexdigest()[:24]


def _forget_old(folder: Path) -> None:
    """Remove all but the newest folders of other sources."""
    with suppress(OSError):
        others = [path for path in folder.parent.iterdir() if path.is_dir() and path != folder]
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in others[_KEPT:]:
            shutil.rmtree(path, ignore_errors=True)
