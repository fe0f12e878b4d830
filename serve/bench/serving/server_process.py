"""`ServerProcess`: a server of ours without Ray, in a process that can be watched from outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from serve.config import ServeConfig

_STOP_S = 15.0
_POLL_S = 0.2


class ServerProcess:
    """A running server: where it listens and what it holds in memory."""

    def __init__(self, process: subprocess.Popen[str], url: str, rpc_url: str) -> None:
        self._process = process
        self.url = url
        self.rpc_url = rpc_url

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def resident_bytes(self) -> int:
        """Return the memory that the process has resident; 0 where the system does not say."""
        try:
            pages = Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii").split()[1]
        except OSError:
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[int]]:
        """Yield a list that gets the resident bytes a few times a second until the block ends."""
        seen = [self.resident_bytes()]
        ended = threading.Event()

        def poll() -> None:
            while not ended.wait(_POLL_S):
                seen.append(self.resident_bytes())

        thread = threading.Thread(target=poll, name="memory", daemon=True)
        thread.start()
        try:
            yield seen
        finally:
            ended.set()
            thread.join()


@contextlib.contextmanager
def server_process(config: ServeConfig) -> Iterator[ServerProcess]:
    """Serve `config` in a process of its own for the length of a `with` block.

    Raises RuntimeError with the server's own words when it does not come up.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, errors = Path(folder) / "serve.json", Path(folder) / "errors.txt"
        path.write_text(json.dumps(config.model_dump(mode="json", exclude_none=True)))
        command = [sys.executable, "-m", "serve", "serve", "--no-ray", "--config", str(path)]
        with errors.open("w") as stderr:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            assert process.stdout is not None, "asked for"
            first_line = process.stdout.readline()
            http, rpc = (re.search(rf"{kind}://[\w.:]+", first_line) for kind in ("http", "grpc"))
            if http is None:
                process.wait(_STOP_S)
                raise RuntimeError(f"the server did not come up: {errors.read_text().strip()}")
            yield ServerProcess(process, http.group(), rpc.group() if rpc else "")
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    with process:  # closes its output
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
