"""A peer of the decoder bench: llama.cpp, by the package xllamacpp, on one GGUF file.

`python -m serve.bench.decoder.llamacpp_peer JSON` runs in an environment of its own, which has
xllamacpp and nothing of ours. It continues one prompt in several slots at once, greedily, and
prints a JSON object: the texts, and the tokens per second that all slots together made after their
prompts were read.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

llamacpp: Any = import_module("xllamacpp")


def main(order: dict[str, Any]) -> None:
    """Run `rounds` rounds of `streams` texts of `max_tokens`; print the best round."""
    params = llamacpp.CommonParams()
    params.model.path = order["model"]
    params.n_parallel = order["streams"]
    params.n_ctx = order["streams"] * order["context"]
    params.cpuparams.n_threads = order["threads"]
    params.cpuparams_batch.n_threads = order["threads"]
    params.cache_prompt = False
    server = llamacpp.Server(params)
    asked = {
        "prompt": order["prompt"],
        "max_tokens": order["max_tokens"],
        "temperature": 0.0,
        "ignore_eos": order["ignore_eos"],
        "cache_prompt": False,
    }
    with ThreadPoolExecutor(order["streams"]) as pool:
        rounds = [
            list(pool.map(lambda _: server.handle_completions(asked), range(order["streams"])))
            for _ in range(order["rounds"])
        ]
    told = [_told(answers) for answers in rounds]
    print(json.dumps(max(told, key=lambda one: one["tokens_per_s"])))


def _told(answers: list[Any]) -> dict[str, Any]:
    """What one round made; its time is that of the slot that took longest."""
    read = [json.loads(a) if isinstance(a, str | bytes) else a for a in answers]
    made = sum(answer["timings"]["predicted_n"] for answer in read)
    taken_s = max(answer["timings"]["predicted_ms"] for answer in read) / 1e3
    return {
        "texts": [answer["choices"][0]["text"] for answer in read],
        "tokens_per_s": made / taken_s,
    }


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
