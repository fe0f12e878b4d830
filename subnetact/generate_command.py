"""`supernet generate`: continue a prompt with a decoder, at any width, or draw texts from it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from slackfit.output_files import check_outputs, write_text
from slackfit.user_errors import user_errors

if TYPE_CHECKING:
    from supernet.checkpoint import Checkpoint


def generate(
    checkpoint: Annotated[Path, typer.Option(help="The checkpoint folder of a decoder.")],
    prompt: Annotated[str | None, typer.Option(help="The text to continue, as it stands.")] = None,
    arch: Annotated[
        str, typer.Option(help="A served subnet's id, largest, smallest, e=0.75, or JSON.")
    ] = "largest",
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to make.")] = 64,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the most likely token, 1 draws as trained.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    switch: Annotated[
        str,
        typer.Option(metavar='"SPEC@TOKEN,..."', help="Change the subnet at these output tokens."),
    ] = "",
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompt as a user's message in the template.")
    ] = False,
    packing: Annotated[
        str, typer.Option(help="How weights are read: views, packed, half or int8.")
    ] = "views",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    texts: Annotated[
        int, typer.Option(min=0, help="Instead of a prompt: draw so many texts, from nothing.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="With --texts: the file that they are written to.")
    ] = None,
) -> None:
    """Write what follows a prompt to the standard output as it is made.

    Or, with --texts, texts that the decoder makes from nothing, with an empty line between two.
    """
    from subnetact.decoding.extents import CacheFullError
    from subnetact.decoding.generation import Switch
    from subnetact.decoding.generation import generate as generated
    from subnetact.decoding.sampling import Sampling
    from subnetact.decoding.stream_executor import StreamExecutor
    from subnetact.decoding.switches import find_subnet, parse_switches
    from supernet.checkpoint import CheckpointError, load_checkpoint
    from supernet.tokenizer import TextStream, Tokenizer

    with user_errors(ValueError, OSError, ImportError, CacheFullError):
        loaded = load_checkpoint(checkpoint)
        if not loaded.definition.family.generates or loaded.text is None:
            what = loaded.definition.family_name if loaded.text is None else "model"
            raise CheckpointError(
                f"{checkpoint}: a {what} without a tokenizer makes no text; "
                "import a decoder with one (docs/decoder.md)"
            )
        if (prompt is None) == (texts == 0) or (texts > 0) != (out is not None):
            raise ValueError("give --prompt TEXT, or --texts N with --out FILE")
        if prompt is None:
            assert out is not None, "checked above"
            _draw(loaded, arch, texts, max_tokens, temperature, seed, packing, threads, out)
            return
        tokenizer = Tokenizer(loaded.text)
        message = [{"role": "user", "content": prompt}]
        ids = tokenizer.encode_chat(message) if chat else tokenizer.encode(prompt)
        planned = parse_switches(switch, loaded)
        chosen = find_subnet(arch, loaded)
        config = loaded.definition.config
        longest: int = config.max_positions  # type: ignore[attr-defined]
        executor = StreamExecutor(
            loaded,
            capacity_tokens=min(len(ids) + max_tokens, longest) + 64,
            threads=threads,
            subnet_ids=(),
            packing=packing,
        )
        subnet_id = executor.add(*chosen)
        switches = [Switch(at, executor.add(*other)) for at, other in planned]
        stream = TextStream(tokenizer)
        room = longest - len(ids) + 1
        for token in generated(
            executor,
            ids,
            subnet_id=subnet_id,
            max_tokens=max_tokens,
            sampling=Sampling(temperature, seed),
            eos_ids=loaded.text.eos_ids,
            switches=switches,
        ):
            room -= 1
            sys.stdout.write(stream.push(token))
            sys.stdout.flush()
        sys.stdout.write(stream.finish() + "\n")
        if room == 0 and len(ids) + max_tokens > longest + 1:
            typer.echo(f"stopped at the network's longest context, {longest} tokens", err=True)


def _draw(
    loaded: Checkpoint,
    arch: str,
    texts: int,
    max_tokens: int,
    temperature: float,
    seed: int,
    packing: str,
    threads: int,
    out: Path,
) -> None:
    """Draw texts and write them to a file, which is there only when it is whole."""
    from subnetact.decoding.drawn_texts import AT_ONCE, drawn_texts
    from subnetact.decoding.stream_executor import StreamExecutor
    from subnetact.decoding.switches import find_subnet
    from supernet.tokenizer import Tokenizer

    check_outputs(str(out))
    text = loaded.text
    assert text is not None, "a decoder without a tokenizer was refused"
    tokenizer, chosen = Tokenizer(text), find_subnet(arch, loaded)
    block = 64
    executor = StreamExecutor(
        loaded,
        capacity_tokens=AT_ONCE * -(-max_tokens // block) * block,
        block_tokens=block,
        threads=threads,
        subnet_ids=(),
        packing=packing,
    )
    starts = [i for i in (text.bos_id, *text.eos_ids) if i is not None] or [0]
    drawn = drawn_texts(
        executor,
        list(dict.fromkeys(starts)),
        subnet_id=executor.add(*chosen),
        count=texts,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        eos_ids=text.eos_ids,
    )
    found: list[str] = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("texts", total=texts)
        for ids in drawn:
            found.append(tokenizer.decode(ids))
            bar.advance(task)
    write_text(str(out), "\n\n".join(found) + "\n")
