"""Writing a safetensors file that others may read as any file of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file


def save_tensors(
    tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write contiguous CPU tensors with the permissions that a new file gets here.

    safetensors itself leaves 0600, so that what root trained no other user could serve. Raises
    OSError or SafetensorError when it can't be written.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata=dict(metadata) if metadata else None)
    path.chmod(mode)
