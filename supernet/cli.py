"""`supernet cost`: MACs and parameters of a subnet, without weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from supernet.cost import cost as count
from supernet.registry import define_supernet
from supernet.spec import parse_arch


def cost(
    family: Annotated[str, typer.Argument(help="A named supernet, e.g. resnet20_cifar.")],
    arch: Annotated[
        str, typer.Option(help="largest, smallest, d=2,w=0.5,e=1 (uniform), or an arch's JSON.")
    ] = "largest",
    json_: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write JSON to FILE; - for stdout.")
    ] = None,
) -> None:
    """Count MACs and parameters of one subnet, extracted as a static network."""
    try:
        definition = define_supernet(family)
        chosen = parse_arch(arch, definition.space)
    except ValueError as error:
        Console(stderr=True).print(f"[red]error:[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    macs, params = count(definition, chosen)
    row = {
        "supernet": family,
        "subnet_id": chosen.subnet_id,
        "resolution": chosen.resolution,
        "macs": macs,
        "params": params,
    }
    if json_ is None:
        Console().print(
            f"{family} {chosen.subnet_id}: {macs / 1e6:.1f} M MACs, {params / 1e6:.3f} M parameters"
            f" at {chosen.resolution}x{chosen.resolution}",
            highlight=False,
        )
    elif json_ == "-":
        sys.stdout.write(json.dumps(row) + "\n")
    else:
        Path(json_).write_text(json.dumps(row) + "\n", encoding="utf-8")
