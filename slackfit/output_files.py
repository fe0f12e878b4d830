"""Output files: whole or not at all, tried before the work, and never lost when it is done.

A file is written beside its place and moved there when it is complete, so that a run that fails or
is killed leaves what was there before. All packages but `supernet` write theirs with this.

A command that works for minutes calls `check_outputs` first. What can't be written all the
same, because a disk filled up or a folder went meanwhile, is kept in the system's folder for
temporary files, and the error says where.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path


class OutputError(OSError):
    """An output can't be written; the text names it, and where its content is, if there is any."""


def check_outputs(*outs: str | Path | None, folders: Iterable[Path | None] = ()) -> None:
    """Try files (None and `-` are none) and folders before the work. Raises OutputError.

    Nothing is left of the trial: folders that it made are gone again.
    """
    for out in outs:
        if out is not None and str(out) != "-":
            _check_file(Path(out))
    for folder in folders:
        if folder is not None:
            _try(folder, folder)


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield a temporary path beside `path`; move it there on success, remove it on failure.

    Where nothing can be written beside `path`, the content is kept elsewhere. Raises OutputError
    then, once it is complete.
    """
    try:
        _check_file(path)
    except OutputError as error:
        kept = Path(tempfile.mkdtemp(prefix="supernet-")) / path.name
        yield kept
        raise OutputError(f"{error}; kept as {kept}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(out: str | Path, text: str) -> None:
    """Write to a file, whole or not at all, or to stdout for `-`. Raises OutputError."""
    if str(out) == "-":
        sys.stdout.write(text)
        return
    try:
        with replacing(Path(out)) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{out}: can't be written ({_why(error)}){_rescued(text)}") from None


def write_each(*writes: Callable[[], object]) -> None:
    """Make every write, whatever becomes of the others. Raises OutputError for those that failed.

    Anything but an OSError is raised at once.
    """
    failures: list[str] = []
    for write in writes:
        try:
            write()
        except OSError as error:
            failures.append(str(error))
    if failures:
        raise OutputError("; ".join(failures))


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, allowed the name of a file")
    _try(path, path.parent)


def _try(what: Path, folder: Path) -> None:
    """Write and remove a file in a folder. Raises OutputError about `what`."""
    probe = _beside(folder / "output")
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
    except OSError as error:
        text = f"can't be written ({_why(error)}); give a place that can"
        raise OutputError(f"{what}: {text}") from None
    finally:
        with suppress(OSError):
            probe.unlink()
        with suppress(OSError):
            for path in missing:
                path.rmdir()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _rescued(text: str) -> str:
    """Keep a text that its own place did not take; return the words that say where."""
    try:
        kept = Path(tempfile.mkdtemp(prefix="supernet-")) / "output"
        kept.write_text(text, encoding="utf-8")
    except OSError:
        sys.stdout.write(text)
        return "; it is on the standard output"
    return f"; kept as {kept}"


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__
