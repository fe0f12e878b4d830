"""Text files as other programs leave them: plain or gzip, with a byte order mark or without."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, cast

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"))
_MARKS += ((codecs.BOM_UTF16_BE, "utf-16"),)


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a plain or gzip text file for reading; a byte order mark says its encoding, else UTF-8.

    Raises:
        OSError: it can't be opened, is no text, or its gzip data is damaged or ends early.
    """
    try:
        with path.open("rb") as raw:
            file = gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw
            with io.BufferedReader(cast(io.RawIOBase, file)) as buffered:
                head = buffered.peek(4)
                encoding = next((e for mark, e in _MARKS if head.startswith(mark)), "utf-8")
                with io.TextIOWrapper(buffered, encoding=encoding, newline="") as stream:
                    yield stream
    except EOFError as error:
        raise OSError(f"the gzip data ends early: {error}") from None
    except zlib.error as error:
        raise OSError(f"the gzip data is damaged: {error}") from None
    except UnicodeError as error:
        raise OSError(f"not a text file: {error}") from None
