"""A peer: llama.cpp's own server, as xllamacpp brings it, on the file that our weights came from.

`python -m serve.bench.streams.llamacpp_server JSON` runs in an environment of its own, which has
xllamacpp and nothing of ours. It prints where it listens, and serves until its input is closed.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any


def main(order: dict[str, Any]) -> None:
    """Serve `gguf` with so many `threads` and `slots`, each with `context` tokens of memory."""
    xllamacpp: Any = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = order["gguf"]
    params.model_alias = ["lm"]
    params.n_parallel = order["slots"]
    params.n_ctx = order["slots"] * order["context"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = order["threads"]
    params.cache_prompt = False  # prompts are drawn: none comes twice
    params.port = 0
    params.verbosity = 0
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
