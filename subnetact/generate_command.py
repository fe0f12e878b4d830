"""`supernet generate`: continue a prompt with a decoder, at any width, or draw texts from it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.progress import Progress

from slackfit.output_files import check_outputs, write_text
from slackfit.plain_console import plain_console
from slackfit.user_errors import user_errors
from subnetact.generate_options import (
    ArchOption,
    ChatOption,
    CheckpointOption,
    MaxTokensOption,
    OutOption,
    PackingOption,
    PromptOption,
    SeedOption,
    SwitchOption,
    TemperatureOption,
    TextsOption,
    ThreadsOption,
)

if TYPE_CHECKING:
    from subnetact.decoding.stream_executor import StreamExecutor
    from supernet.checkpoint import Checkpoint
    from supernet.text import TextSpec

_BLOCK_TOKENS = 64  # of the cache


def generate(
    checkpoint: CheckpointOption,
    prompt: PromptOption = None,
    arch: ArchOption = "largest",
    max_tokens: MaxTokensOption = 64,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    switch: SwitchOption = "",
    chat: ChatOption = False,
    packing: PackingOption = "views",
    threads: ThreadsOption = 1,
    texts: TextsOption = 0,
    out: OutOption = None,
) -> None:
    """Write what follows a prompt to the standard output as it is made.

    Or, with --texts, texts that the decoder makes from nothing, with an empty line between two.
    """
    from subnetact.decoding.extents import CacheFullError

    with user_errors(ValueError, OSError, ImportError, CacheFullError):
        loaded, text = _load(checkpoint)
        writer = _Writer(
            decoder=loaded,
            text=text,
            arch=arch,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            packing=packing,
            threads=threads,
        )
        if prompt is not None and not texts and out is None:
            _write(writer.continued(prompt, switch, is_chat=chat))
        elif prompt is None and texts and out is not None:
            if switch or chat:
                raise ValueError("--switch and --chat go with --prompt, not with --texts")
            check_outputs(out)
            # Written when all are there: a file that is there is whole.
            write_text(out, "\n\n".join(_shown(writer.drawn(texts), texts)) + "\n")
        else:
            raise ValueError("give --prompt TEXT, or --texts N with --out FILE")


def _load(folder: Path) -> tuple[Checkpoint, TextSpec]:
    """Return a decoder and what its tokens are. Raises CheckpointError for one that has none."""
    from supernet.checkpoint import CheckpointError, load_checkpoint

    loaded = load_checkpoint(folder)
    if not loaded.definition.family.generates or loaded.text is None:
        what = loaded.definition.family_name if loaded.text is None else "model"
        raise CheckpointError(
            f"{folder}: a {what} without a tokenizer makes no text; "
            "import a decoder with one (docs/decoder.md)"
        )
    return loaded, loaded.text


def _write(pieces: Iterator[str]) -> None:
    """Write a text to the standard output as it comes, for as long as somebody reads it."""
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except BrokenPipeError:  # `| head` has what it wanted, which is no error to tell of
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # where the interpreter flushes what is left
        raise typer.Exit(1) from None


def _shown(texts: Iterator[str], count: int) -> Iterator[str]:
    """Yield texts under a bar, which is gone at the end."""
    with Progress(console=plain_console(stderr=True), transient=True) as bar:
        task = bar.add_task("texts", total=count)
        for text in texts:
            yield text
            bar.advance(task)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writer:
    """A decoder at a width, and how it writes; `arch` and the rest as in the command's options."""

    decoder: Checkpoint
    text: TextSpec
    arch: str
    max_tokens: int
    temperature: float
    seed: int
    packing: str
    threads: int

    def continued(self, prompt: str, switch: str, *, is_chat: bool) -> Iterator[str]:
        """Yield what follows a prompt, piece by piece, and the end of its last line."""
        from subnetact.decoding.generation import Switch, generate
        from subnetact.decoding.sampling import Sampling
        from subnetact.decoding.switches import find_subnet, parse_switches
        from supernet.tokenizer import TextStream, Tokenizer

        tokenizer = Tokenizer(self.text)
        message = [{"role": "user", "content": prompt}]
        ids = tokenizer.encode_chat(message) if is_chat else tokenizer.encode(prompt)
        planned = parse_switches(switch, self.decoder)
        chosen = find_subnet(self.arch, self.decoder)
        longest = self._longest
        executor = self._executor(min(len(ids) + self.max_tokens, longest) + _BLOCK_TOKENS)
        subnet_id = executor.add(*chosen)
        stream = TextStream(tokenizer, ids)
        room = longest - len(ids) + 1
        for token in generate(
            executor,
            ids,
            subnet_id=subnet_id,
            max_tokens=self.max_tokens,
            sampling=Sampling(self.temperature, self.seed),
            eos_ids=self.text.eos_ids,
            switches=[Switch(at, executor.add(*other)) for at, other in planned],
        ):
            room -= 1
            yield stream.push(token)
        yield stream.finish() + "\n"
        if room == 0 and len(ids) + self.max_tokens > longest + 1:
            typer.echo(f"stopped at the network's longest context, {longest} tokens", err=True)

    def drawn(self, count: int) -> Iterator[str]:
        """Yield texts that are made from nothing."""
        from subnetact.decoding.drawn_texts import AT_ONCE, drawn_texts
        from subnetact.decoding.switches import find_subnet
        from supernet.tokenizer import Tokenizer

        tokenizer, chosen = Tokenizer(self.text), find_subnet(self.arch, self.decoder)
        blocks = -(-min(self.max_tokens, self._longest) // _BLOCK_TOKENS)
        executor = self._executor(min(AT_ONCE, count) * blocks * _BLOCK_TOKENS)
        known = self.decoder.definition.config.num_classes  # tokens, to the network
        ends = (self.text.bos_id, *self.text.eos_ids)
        starts = [i for i in ends if i is not None and i < known] or [0]
        for ids in drawn_texts(
            executor,
            list(dict.fromkeys(starts)),
            subnet_id=executor.add(*chosen),
            count=count,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            seed=self.seed,
            eos_ids=self.text.eos_ids,
        ):
            yield tokenizer.decode(ids)

    @property
    def _longest(self) -> int:
        from supernet.families.decoder import DecoderConfig

        config = self.decoder.definition.config
        assert isinstance(config, DecoderConfig), "of decoders alone"
        return config.max_positions

    def _executor(self, capacity_tokens: int) -> StreamExecutor:
        from subnetact.decoding.stream_executor import StreamExecutor

        return StreamExecutor(
            self.decoder,
            capacity_tokens=capacity_tokens,
            block_tokens=_BLOCK_TOKENS,
            threads=self.threads,
            subnet_ids=(),
            packing=self.packing,
        )
