"""The verb `audit`: what an attacker learns from a server that chooses models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

RELEASE = Path(__file__).parents[2] / "models" / "cifar10_resnet20"
LOCAL = "local"


def audit_command(
    context: typer.Context,
    endpoint: Annotated[
        str,
        typer.Option(
            metavar="local|URL",
            help="Serve a checkpoint on loopback, open and defended; or a server of yours.",
        ),
    ],
    checkpoint: Annotated[
        Path, typer.Option(metavar="DIR", help="What `local` serves: an image supernet.")
    ] = RELEASE,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Images to ask with; default: those of SUPERNET_DATA_DIR, or crops."
        ),
    ] = None,
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the record.")
    ] = None,
    html_out: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the report page.")
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Keep finished parts here; a further run goes on.")
    ] = Path("runs/audit"),
    full: Annotated[
        bool, typer.Option("--full", help="Students from scratch as well: about three core-hours.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")] = 0,
) -> None:
    """Attack a server as its clients could: fingerprints, shares, timing, copies, and the price."""
    from serve.client.rest_answers import ClientError
    from serve.config import ServeConfigError
    from slackfit.output_files import check_outputs, write_each, write_text
    from slackfit.user_errors import user_errors
    from supernet.checkpoint import CheckpointError
    from traces.commands.command_line import command_line
    from traces.trace import TraceError

    with user_errors(
        ValueError, OSError, ClientError, ServeConfigError, CheckpointError, TraceError
    ):
        check_outputs(json_out, html_out, folders=[out])
        record = _audit(endpoint, checkpoint, data, out, full=full, seed=seed)
        record["command"] = command_line(
            context, "supernet audit", without=("json_out", "html_out", "out")
        )
        text = json.dumps(record, indent=1, allow_nan=False) + "\n"
        write_each(
            lambda: None if json_out is None else write_text(json_out, text),
            lambda: None if html_out is None else write_text(html_out, _page(record)),
        )
        if json_out != "-":
            typer.echo(_summary(record))


def _audit(
    endpoint: str, checkpoint: Path, data: Path | None, out: Path, *, full: bool, seed: int
) -> dict[str, Any]:
    from serve.audit.audit_images import find_images
    from serve.audit.side import AttackScale

    def tell(text: str) -> None:
        typer.echo(text, err=True)

    scale = AttackScale()
    if endpoint != LOCAL:
        from serve.audit.endpoint import audit_endpoint, image_shape

        images = find_images(data, image_shape(endpoint), seed)
        return audit_endpoint(endpoint, images, scale=scale, seed=seed, tell=tell)
    import torch

    from serve.audit.audit import LocalAudit
    from serve.audit.copying.copies import CopyScale
    from serve.audit.local_servers import LocalServers
    from serve.bench.journal import Journal
    from supernet.checkpoint import load_checkpoint

    torch.set_num_threads(1)  # a server has the other core, and the students are small
    loaded = load_checkpoint(checkpoint)
    images = find_images(data, loaded.sample.shape, seed)
    tell(f"asking with {images.source}")
    settings = {"checkpoint": loaded.fingerprint, "images": images.source, "seed": seed}
    journal = Journal(out / "audit.jsonl", {**settings, "scale": scale._asdict()})
    audit = LocalAudit(
        LocalServers(checkpoint, loaded, out / "servers"),
        checkpoint,
        images,
        journal,
        out,
        scale=scale,
        copies=CopyScale(has_scratch=full),
        seed=seed,
        tell=tell,
    )
    return audit.run()


def _page(record: dict[str, Any]) -> str:
    from serve.audit.page import audit_page

    return audit_page(record)


def _attacked(found: dict[str, Any]) -> list[str]:
    """Return what the attacks on one side found; a part that was left out is left out here."""
    finger, share, timing = found["fingerprint"], found["share"], found["timing"]
    texts: list[str] = []
    if finger is not None:
        pinned = f"{finger['pinned']} of {finger['subnets']} subnets in {finger['queries_asked']}"
        one = finger["queries_one"]
        victim = "victim not pinned" if one is None else f"victim pinned in {one} queries"
        texts.append(f"{victim}, {pinned}")
    if share is not None:
        texts.append(
            f"share {share['naive']:.3f} naive, {share['adaptive']:.3f} adaptive, "
            f"{share['repetition_gain']:+.3f} by repetition"
        )
    if timing is not None:
        texts.append(f"timing {timing['accuracy']:.3f} (chance {timing['chance']:.3f})")
    return texts


def _summary(record: dict[str, Any]) -> str:
    lines: list[str] = []
    for side in ("undefended", "defended"):
        found = record.get(side)
        if found is None:
            continue
        lines.append(f"{side}: {'; '.join(_attacked(found)) or 'nothing could be asked'}")
        if found["goodput"] is not None:
            price = found["price"]
            lines.append(
                f"  goodput {price['goodput']:.4f}, accuracy lost "
                f"{price['served_accuracy_lost'] * 100:.2f} points, "
                f"{price['additional_misses']} more misses, "
                f"{price['floor_violations']} floors broken"
            )
    return "\n".join(lines)
