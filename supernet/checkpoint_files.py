"""The files of a checkpoint folder: their names, their digests, tensors that belong to subnets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

WEIGHTS, NORMS = "supernet.safetensors", "norm_statistics.safetensors"
RANGES = "activation_ranges.safetensors"
ACCURACY, HEADER = "accuracy.json", "supernet.json"
TOKENIZER = "tokenizer.json"
LOW_BIT = "low_bit.safetensors"
OPTIONAL = (RANGES, LOW_BIT, TOKENIZER)  # files that not every checkpoint has


class CheckpointError(ValueError):
    """A checkpoint folder is incomplete, inconsistent or does not fit its own description."""


def by_path(
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """{`<subnet id>/<name>`: tensor}: how a tensor file keeps what belongs to subnets."""
    return {
        f"{subnet_id}/{name}": tensor.contiguous()
        for subnet_id, own in tensors.items()
        for name, tensor in own.items()
    }


def by_subnet(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Read what `by_path` made."""
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in read_tensors(path).items():
        subnet_id, _, name = key.partition("/")
        tensors.setdefault(subnet_id, {})[name] = tensor
    return tensors


def check_folder(folder: str | Path) -> None:
    """Try a checkpoint folder, and the one that it lies in, before the work.

    Raises CheckpointError where nothing can be written; nothing is left of the trial. A twin of
    `slackfit.output_files.check_outputs`, as this package imports none of the others.
    """
    target = Path(folder)
    missing = [path for path in (target, *target.parents) if not path.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        for place in (target, target.parent):  # it is made beside its place, then moved
            with TemporaryFile(dir=place) as probe:
                probe.write(b"x")
    except OSError as error:
        text = f"can't be written ({error.strerror or error}); give a place that can"
        raise CheckpointError(f"{target}: {text}") from None
    finally:
        with suppress(OSError):
            for path in missing:
                path.rmdir()


def checked_digests(source: Path, header: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of each file. Raises CheckpointError unless they are those of `header`."""
    digests: dict[str, str] = {}
    told: Mapping[str, str] = header.get("files", {})
    names = [WEIGHTS, NORMS, ACCURACY, *(name for name in OPTIONAL if name in told)]
    for name in names:
        path = source / name
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; the checkpoint is incomplete")
        digests[name] = digest(path)
        if told.get(name) != digests[name]:
            raise CheckpointError(
                f"{path}: its digest is not the one in {HEADER}; the file was altered, "
                "truncated or belongs to another checkpoint"
            )
    return digests


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError: no such file, or something else in it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; is this a checkpoint folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a tensor file. Raises CheckpointError unless it is whole."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from None


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_of(digests: Mapping[str, str]) -> str:
    """Short name of the tensors: what a profile or a recorded run was made with."""
    told = digests[WEIGHTS] + digests[NORMS] + digests.get(LOW_BIT, "")
    return hashlib.sha256(told.encode()).hexdigest()[:16]
