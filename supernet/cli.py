"""`supernet cost`, `supernet import`, `supernet export`: sizes, and weights in and out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from supernet.checkpoint import load_checkpoint, save_checkpoint
from supernet.definition import define_supernet
from supernet.spec import parse_arch
from supernet.subnets.cost import cost as count
from supernet.weights.naming import ORIGINS

SourceArgument = Annotated[
    str, typer.Argument(help="A file or folder; for timm, torchvision a name.")
]
OriginOption = Annotated[str, typer.Option("--from", help=f"Whose naming: {ORIGINS}.")]
FolderOption = Annotated[Path, typer.Option(help="The checkpoint folder to write.")]
SupernetOption = Annotated[
    str | None, typer.Option(help="Which named supernet; timm and torchvision tell.")
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(help="Your own file of the timm or torchvision network that SOURCE names."),
]
ClassesOption = Annotated[
    int | None, typer.Option(help="Default: as the file's classifier, or the variant's own.")
]
NewHeadOption = Annotated[
    bool, typer.Option(help="Draw a classifier that is absent or has other classes.")
]
IgnoreOption = Annotated[list[str] | None, typer.Option(help="Pattern of keys to leave out.")]
SortOption = Annotated[bool, typer.Option(help="Put important channels first.")]
SubnetsOption = Annotated[
    int,
    typer.Option(help="Serve N subnets of the ladder (families without BatchNorm; decoders all)."),
]
AccuracyOption = Annotated[
    float | None, typer.Option(help="Known accuracy of the largest subnet, a fraction.")
]
HalfOption = Annotated[
    bool, typer.Option("--half", help="Keep the weights in float16, at half the size.")
]
CalibrationOption = Annotated[
    list[Path] | None,
    typer.Option(help="Decoders: a file of text to sort and compare widths by; broad is better."),
]
ElasticOption = Annotated[
    str,
    typer.Option(
        metavar="AXES",
        help="Decoders: what is elastic beside the width: heads, depth, or heads,depth.",
    ),
]


def cost(
    family: Annotated[str, typer.Argument(help="A named supernet, e.g. resnet20_cifar.")],
    arch: Annotated[
        str,
        typer.Option(help="largest, smallest, d=2,w=0.5,e=1 (uniform), an arch's JSON, or help."),
    ] = "largest",
    json_: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write JSON to FILE; - for stdout.")
    ] = None,
) -> None:
    """Count MACs and parameters of one subnet, extracted as a static network."""
    with _user_errors(ValueError):
        definition = define_supernet(family)
        if arch == "help":
            for letter, meaning in definition.family.letters.items():
                typer.echo(f"{letter}  {meaning}")
            return
        chosen = parse_arch(arch, definition.space)
    macs, params = count(definition, chosen)
    row = {
        "supernet": family,
        "subnet_id": chosen.subnet_id,
        "resolution": chosen.resolution,
        "macs": macs,
        "params": params,
    }
    if json_ is None:
        typer.echo(
            f"{family} {chosen.subnet_id}: {macs / 1e6:.1f} M MACs, {params / 1e6:.3f} M parameters"
            f" at {chosen.resolution}x{chosen.resolution}",
        )
    elif json_ == "-":
        sys.stdout.write(json.dumps(row) + "\n")
    else:
        from supernet.weights.export_weights import write_whole

        text = json.dumps(row) + "\n"
        with _user_errors(OSError):
            write_whole(json_, lambda partial: partial.write_text(text, encoding="utf-8"))


def import_(
    source: SourceArgument,
    origin: OriginOption,
    out: FolderOption,
    supernet: SupernetOption = None,
    weights: WeightsOption = None,
    num_classes: ClassesOption = None,
    new_head: NewHeadOption = False,
    ignore: IgnoreOption = None,
    sort: SortOption = True,
    subnets: SubnetsOption = 1,
    accuracy: AccuracyOption = None,
    half: HalfOption = False,
    calibration: CalibrationOption = None,
    elastic: ElasticOption = "",
) -> None:
    """Make a checkpoint folder of weights that were trained elsewhere."""
    from supernet.checkpoint_files import check_folder
    from supernet.weights.import_request import ImportRequest

    with _user_errors(ValueError, OSError, RuntimeError, ImportError):
        check_folder(out)
        request = ImportRequest(
            source=source,
            origin=origin,
            supernet=supernet,
            weights=weights,
            num_classes=num_classes,
            new_head=new_head,
            ignore=ignore or (),
            sort=sort,
            num_subnets=subnets,
            accuracy=accuracy,
            half=half,
            calibration=calibration or (),
            elastic=[axis.strip() for axis in elastic.split(",") if axis.strip()],
            tell=lambda text: typer.echo(text, err=True),
        )
        checkpoint = request.checkpoint()
        save_checkpoint(checkpoint, out)
    typer.echo(
        f"{out}: {checkpoint.name}, {checkpoint.definition.family_name}, "
        f"{len(checkpoint.subnets)} of {checkpoint.definition.space.num_archs:.3g} subnets served",
    )


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
    from supernet.subnets.extract import extract
    from supernet.weights.export_weights import export_subnet, origin_state, write_state
    from supernet.weights.huggingface_folder import write_folder

    with _user_errors(ValueError, OSError):
        loaded = load_checkpoint(checkpoint)
        definition = loaded.definition
        served = {subnet.subnet_id: subnet.arch for subnet in loaded.subnets}
        chosen = served.get(arch)
        if chosen is None and arch != "whole":
            chosen = parse_arch(arch, definition.space)
        statistics = loaded.norm_statistics.get(chosen.subnet_id) if chosen else None
        if chosen and statistics is None and definition.buffer_shapes(chosen):
            typer.echo(
                f"warning: {chosen.subnet_id} is not served here: it keeps the "
                "supernet's BatchNorm statistics, calibrate it before use",
                err=True,
            )
        if format != "state_dict" and loaded.input.kind == "nodes":
            raise ValueError(
                f"--format is {format}: what a graph network reads is sampled for each query, "
                "allowed state_dict"
            )
        if format == "state_dict":
            write_state(origin_state(loaded.state, definition, chosen, naming, statistics), out)
        elif format == "huggingface" and chosen is not None:
            write_folder(loaded, chosen, out)
        elif chosen is None:
            raise ValueError(f"the whole supernet is no {format} program: choose one subnet")
        else:
            subnet = extract(loaded.state, definition, chosen, statistics)
            export_subnet(subnet, definition.example_input(chosen, 2), out, format)
    typer.echo(f"{out}: {format} of {arch}")


@contextmanager
def _user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Twin of `slackfit.user_errors`, as this package imports none of the others."""
    try:
        yield
    except kinds as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
