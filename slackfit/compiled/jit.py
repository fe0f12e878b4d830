"""Numba's `njit` in three forms, and whether it is there. Nothing else imports numba.

What was compiled is kept in `compiled/` of the folder that `SUPERNET_CACHE_DIR` names, else of the
user's cache folder, so that only the first run waits for it. Numba looks at the age of the file of
one function only, not at the files that it calls or takes constants from; so the folder is named
by a digest of all of SlackFit's sources and of the versions: a change anywhere compiles anew. It is
made for its owner alone, because numba unpickles what it finds there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])
# Counting references of the state's arrays at every call would take longer than the work itself,
# and a door to Python for each function more than half of the compilation.
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "nogil": True, "_nrt": False}
_NO_WRAPPERS = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_KEPT = 6  # folders of other sources or versions, the newest ones


def missing() -> str:
    """Return why nothing can be compiled here, as a sentence; empty where it can."""
    if find_spec("numba") is None:
        return "numba is not installed (pip install 'supernet-serving[fast]')"
    return _import_fault()


@cache
def _import_fault() -> str:
    try:
        import_module("numba")
    except ImportError as error:  # it lags behind new Pythons and NumPys
        return f"numba does not import here: {error}"
    return ""


def compiled(function: _Function) -> _Function:
    """Return `function` as machine code that other machine code calls, never Python.

    It must allocate nothing, since references are not counted; division by zero gives inf or nan
    there, so nothing may rely on its exception.
    """
    numba: Any = import_module("numba")
    return numba.njit(**_OPTIONS, **_NO_WRAPPERS)(function)


def inlined(function: _Function) -> _Function:
    """Return the same, made part of its callers: for what is short, or has one caller."""
    numba: Any = import_module("numba")
    return numba.njit(forceinline=True, **_OPTIONS, **_NO_WRAPPERS)(function)


def entry(function: _Function) -> _Function:
    """Return machine code that Python calls, with all that it calls, from the cache if it can."""
    numba: Any = import_module("numba")
    folder = _folder()
    before = numba.config.CACHE_DIR
    if folder is not None:
        numba.config.CACHE_DIR = str(folder)
    try:
        return numba.njit(cache=folder is not None, **_OPTIONS)(function)
    finally:
        numba.config.CACHE_DIR = before


@cache
def _folder() -> Path | None:
    """Return where machine code is kept; None where no folder can be written."""
    named = os.environ.get("SUPERNET_CACHE_DIR")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(named or Path(home) / "supernet") / "compiled" / _fingerprint()
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


def _fingerprint() -> str:
    """Return a digest of what the machine code depends on, other than the processor."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
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
