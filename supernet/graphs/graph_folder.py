"""`GraphFolder`: which graph a checkpoint's samples are nodes of, and where it lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFolder:
    """A graph folder, how many nodes it has, and the digest of its neighbour lists ("": any)."""

    folder: Path
    num_nodes: int
    digest: str

    def to_json(self, checkpoint: Path) -> dict[str, Any]:
        """Return plain data; a folder inside the checkpoint's is named from there."""
        folder = self.folder.resolve()
        inside = folder.is_relative_to(checkpoint.resolve())
        name = folder.relative_to(checkpoint.resolve()) if inside else folder
        return {"folder": str(name), "nodes": self.num_nodes, "digest": self.digest}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], checkpoint: Path) -> GraphFolder:
        """Rebuild from `to_json` data. Raises KeyError or TypeError for a malformed one."""
        return cls(
            folder=checkpoint / str(data["folder"]),
            num_nodes=int(data["nodes"]),
            digest=str(data["digest"]),
        )
