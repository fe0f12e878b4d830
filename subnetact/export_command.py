"""`supernet export`: one subnet as a file that others load; in int8 or one bit as an ONNX graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slackfit.output_files import replacing
from slackfit.user_errors import user_errors
from supernet import cli, load_checkpoint
from supernet.served_form import ServedForm
from supernet.weights.naming import ORIGINS


def export(
    checkpoint: Annotated[Path, typer.Option(help="A checkpoint folder.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    arch: Annotated[
        str, typer.Option(help="A served subnet's id, largest, smallest, letters, JSON, or whole.")
    ] = "largest",
    format: Annotated[
        str,
        typer.Option(help="state_dict, torch_export, torchscript, onnx; huggingface for decoders."),
    ] = "state_dict",
    naming: Annotated[str, typer.Option(help=f"For state_dict: {ORIGINS}.")] = "supernet",
) -> None:
    """Write one subnet as a plain state_dict, as a program, or as a folder for transformers."""
    if ServedForm.parse(arch).precision == "fp32":
        cli.export(checkpoint, out, arch, format, naming)
        return
    with user_errors(ValueError, OSError, ImportError):
        if format != "onnx":
            precision = ServedForm.parse(arch).precision
            raise ValueError(
                f"{arch} in {format}: {precision} is an ONNX graph, give --format onnx"
            )
        write_graph(checkpoint, arch, out)
    typer.echo(f"{out}: onnx of {arch}")


def write_graph(checkpoint: Path, form_id: str, out: Path) -> None:
    """Write the graph of an entry as it is served: uint8 samples in, normalised inside, logits out.

    Raises CheckpointError for an entry that the checkpoint does not have, OSError when the file
    can't be written, OrtMissingError without onnx.
    """
    import onnx

    from subnetact.cpu.activation_ranges import ranges_from_tensors
    from subnetact.cpu.subnet_sessions import SubnetSessions

    loaded = load_checkpoint(checkpoint)
    loaded.subnet(form_id)
    ranges = {i: ranges_from_tensors(t) for i, t in loaded.activation_ranges.items()}
    model = SubnetSessions(loaded, ranges=ranges).graph(ServedForm.parse(form_id))
    with replacing(out) as temporary:
        onnx.save(model, temporary)
