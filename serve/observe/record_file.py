"""`RecordFile`: the file of a scheduler's recorded calls; a full disk ends the record, not serving.

Lines are written in blocks, each whole: a file that could not be written on ends behind its last
whole block, so that what was recorded until then can still be decided again.
"""

from __future__ import annotations

import contextlib
import logging
import os

from serve.config import ServeConfigError

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 64 * 2**10


class RecordFile:
    """A `TextSink` whose `write` never raises; one thread at a time.

    Raises ServeConfigError where the file can't be opened.
    """

    def __init__(self, path: str) -> None:
        try:
            self._file: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        except OSError as error:
            raise ServeConfigError(f"record {path}: can't be written ({error.strerror})") from None
        self._path = path
        self._lines: list[bytes] = []
        self._num_bytes = 0
        self._written_bytes = 0

    def write(self, text: str, /) -> None:
        """Take whole lines; they are in the file with their block, or when it is closed."""
        if self._file is None:
            return
        self._lines.append(text.encode())
        self._num_bytes += len(self._lines[-1])
        if self._num_bytes >= _BLOCK_BYTES:
            self._write_block()

    def close(self) -> None:
        """Write what is left, and close."""
        if self._file is not None:
            self._write_block()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write_block(self) -> None:
        assert self._file is not None, "an open file"
        block = memoryview(b"".join(self._lines))
        self._lines, self._num_bytes = [], 0
        size = len(block)
        try:
            while block:
                block = block[os.write(self._file, block) :]
        except OSError as error:
            self._stop(error)
        else:
            self._written_bytes += size

    def _stop(self, error: OSError) -> None:
        logger.error("record %s: %s; recording stops here", self._path, error.strerror)
        assert self._file is not None, "an open file"
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, self._written_bytes)
        with contextlib.suppress(OSError):
            os.close(self._file)
        self._file = None
