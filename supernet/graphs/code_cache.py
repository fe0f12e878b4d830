"""Whether numba runs here, and where machine code is kept from one run to the next.

It is kept in a folder of `SUPERNET_CACHE_DIR`, else of the user's cache folder, so that only the
first run waits for it; where none can be written it is compiled at every start. Numba looks at the
age of the file of one function only, not at the files that it calls or takes constants from; so the
folder is named by a digest of all sources and of the versions: a change anywhere compiles anew. It
is made for its owner alone, because numba unpickles what it finds there.

Of this file there are two, `slackfit/compiled/code_cache.py` and `supernet/graphs/code_cache.py`:
each package imports none of the others. A test holds them equal, letter by letter.
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


def kept(function: Any, folder: Path | None, **options: Any) -> Any:
    """Return numba's `njit(**options)` of `function`, its machine code from `folder` if it can."""
    numba: Any = import_module("numba")
    before = numba.config.CACHE_DIR
    if folder is not None:
        numba.config.CACHE_DIR = str(folder)
        try:
            dispatcher = numba.njit(cache=True, **options)(function)
            _outlive_spoilt_files(dispatcher._cache)
            return dispatcher
        except RuntimeError:  # no longer to be written, or the source is no file
            pass
        finally:
            numba.config.CACHE_DIR = before
    return numba.njit(**options)(function)


def _outlive_spoilt_files(cached: Any) -> None:
    """Let a numba cache compile what it cannot read, and do without what it cannot write.

    A file that a full disk or a crash cut short would raise whatever unpickling raises, at every
    start until somebody deletes it.
    """
    load, save = cached.load_overload, cached.save_overload

    def load_or_compile(signature: Any, target: Any) -> Any:
        try:
            return load(signature, target)
        except Exception:  # spoilt bytes, unpickled, raise whatever they happen to mean
            try:
                cached.flush()  # the index names no file from now on, and each is replaced
            except OSError:
                cached.disable()
            return None

    def save_if_possible(signature: Any, compiled: Any) -> None:
        with suppress(OSError):
            save(signature, compiled)

    cached.load_overload, cached.save_overload = load_or_compile, save_if_possible


@cache
def code_folder(name: str, sources: Path) -> Path | None:
    """Return where machine code of `sources` is kept, in the cache folder's `name`.

    None where no folder can be written.
    """
    named = os.environ.get("SUPERNET_CACHE_DIR")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(named or Path(home) / "supernet") / name / fingerprint(sources)
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
    for path in sorted(sources.rglob("*.py")):
        digest.update(path.relative_to(sources).as_posix().encode() + b"\0" + path.read_bytes())
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
