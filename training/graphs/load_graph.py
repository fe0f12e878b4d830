"""The graph that a config names: a graph folder, a planetoid archive, or one by name."""

from __future__ import annotations

import os
from pathlib import Path

from supernet.graphs.convert import read_planetoid
from supernet.graphs.graph_store import GraphDataError, GraphStore, open_graph

NAMED = ("cora", "citeseer")
DATA_DIR = "SUPERNET_DATA_DIR"


def load_graph(path: str) -> GraphStore:
    """Open a folder, or read an .npz; `cora` and `citeseer` are below SUPERNET_DATA_DIR.

    Raises GraphDataError saying where it was looked for.
    """
    if path in NAMED:
        root = os.environ.get(DATA_DIR)
        if not root:
            raise GraphDataError(
                f"data.path is {path}: set {DATA_DIR} to the folder that has planetoid/{path}.npz, "
                "or give data.path a graph folder or an .npz file"
            )
        return read_planetoid(Path(root) / "planetoid" / f"{path}.npz")
    given = Path(path)
    return read_planetoid(given) if given.suffix == ".npz" else open_graph(given)
