"""The options of `generate`: what each may be, and its line of help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CheckpointOption = Annotated[Path, typer.Option(help="The checkpoint folder of a decoder.")]
PromptOption = Annotated[str | None, typer.Option(help="The text to continue, as it stands.")]
ArchOption = Annotated[
    str, typer.Option(help="A served subnet's id, largest, smallest, e=0.75, or JSON.")
]
MaxTokensOption = Annotated[int, typer.Option(min=1, help="Most tokens to make.")]
TemperatureOption = Annotated[
    float, typer.Option(min=0, help="0 takes the most likely token, 1 draws as trained.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the draws.")]
SwitchOption = Annotated[
    str,
    typer.Option(metavar='"SPEC@TOKEN,..."', help="Change the subnet at these output tokens."),
]
ChatOption = Annotated[
    bool, typer.Option("--chat", help="Put the prompt as a user's message in the template.")
]
PackingOption = Annotated[
    str, typer.Option(help="How weights are read: views, packed, half or int8.")
]
ThreadsOption = Annotated[int, typer.Option(min=1, help="CPU threads.")]
TextsOption = Annotated[
    int, typer.Option(min=0, help="Instead of a prompt: draw so many texts, from nothing.")
]
OutOption = Annotated[
    Path | None, typer.Option(help="With --texts: the file that they are written to.")
]
