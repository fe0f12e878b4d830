"""`GraphStore`: a graph in memory-mapped files: neighbour lists, features, labels, splits.

| file | what |
|---|---|
| indptr.npy, indices.npy | neighbour lists (CSR): int64 (nodes + 1,), int32 (edges,) |
| features.npy | (nodes, F) float32 |
| labels.npy | int32 (nodes,), -1 where none is known; optional |
| train.npy, validation.npy, test.npy | int32 node ids; optional |
| graph.json | format, name, classes, source, and a digest of the lists; written last |

A graph that is saved over another puts its arrays into a folder of a new name, `arrays-...`, which
its graph.json names as `arrays`: so the one or the other is there whole, whenever it is opened
(docs/decisions/305-a-graph-is-replaced-by-its-header.md).

A list holds the nodes that messages come from, so an undirected edge stands in two lists. Opening
looks at all lists once and at no features, so features may be larger than memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

FORMAT = 1
HEADER = "graph.json"
SPLITS = ("train", "validation", "test")
_ARRAYS = "arrays-"  # how a folder begins that arrays lie in
_NAMES = ("indptr", "indices", "features")
# What NumPy raises for a file that is cut off, spoilt, or of another kind.
_UNREADABLE = (ValueError, OSError, EOFError, MemoryError, OverflowError)


class GraphDataError(ValueError):
    """A graph's files are missing, malformed, or contradict each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphStore:
    """The arrays of one graph, memory-mapped where they were opened from files."""

    name: str
    indptr: np.ndarray  # int64 (nodes + 1,)
    indices: np.ndarray  # int32 (edges,)
    features: np.ndarray  # float32 (nodes, F)
    labels: np.ndarray | None = None  # int32 (nodes,)
    splits: dict[str, np.ndarray] = field(default_factory=dict)  # {name: int32 (n,)}
    classes: tuple[str, ...] = ()
    source: str = ""
    folder: Path | None = None

    def __post_init__(self) -> None:
        _check(self)

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return len(self.indptr) - 1

    @property
    def num_edges(self) -> int:
        """Number of entries of all neighbour lists: two for an undirected edge."""
        return len(self.indices)

    @property
    def num_features(self) -> int:
        """Features per node."""
        return self.features.shape[1]

    @property
    def degrees(self) -> np.ndarray:
        """(nodes,) int64: how many neighbours each node has."""
        return np.diff(self.indptr)

    def digest(self) -> str:
        """Name the neighbour lists and the features' shape; reads all lists, no features."""
        digest = hashlib.sha256(np.ascontiguousarray(self.indptr).data)
        digest.update(np.ascontiguousarray(self.indices).data)
        digest.update(str(self.features.shape).encode())
        return digest.hexdigest()[:16]

    def save(self, folder: str | Path) -> GraphStore:
        """Write the folder, the header last, and return the graph as opened from there.

        Whoever stops it, at any moment, leaves what was there before or what was saved, whole; and
        whoever opens it meanwhile has one of them. A folder that is there keeps what is no graph's.
        """
        target = Path(folder).absolute()
        if target.is_dir():
            self._replace(target)
        else:
            self._make(target)
        return open_graph(folder)

    def _make(self, target: Path) -> None:
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        part.mkdir(parents=True)
        try:
            self._write(part, {})
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _replace(self, target: Path) -> None:
        """Write beside what is there, name it in the header, and then remove what was there."""
        arrays = target / f"{_ARRAYS}{uuid4().hex[:12]}"
        arrays.mkdir()
        try:
            self._write(arrays, {"arrays": arrays.name})
            earlier = _arrays_of(target)
            (arrays / HEADER).replace(target / HEADER)
        except BaseException:
            if _arrays_of(target) != arrays:  # stopped right after it, it is the graph
                shutil.rmtree(arrays, ignore_errors=True)
            raise
        if earlier == target:
            for name in (*_NAMES, *SPLITS, "labels"):
                (target / f"{name}.npy").unlink(missing_ok=True)
        elif earlier is not None:
            shutil.rmtree(earlier, ignore_errors=True)

    def _write(self, folder: Path, more: dict[str, str]) -> None:
        arrays = {name: getattr(self, name) for name in _NAMES} | self.splits
        if self.labels is not None:
            arrays["labels"] = self.labels
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        header = {
            "format": FORMAT,
            "name": self.name,
            "nodes": self.num_nodes,
            "edges": self.num_edges,
            "features": self.num_features,
            "classes": list(self.classes),
            "source": self.source,
            "digest": self.digest(),
            **more,
        }
        (folder / HEADER).write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")


def open_graph(folder: str | Path) -> GraphStore:
    """Map the files of a graph folder. Raises GraphDataError naming the file at fault."""
    source = Path(folder)
    header = _header(source)
    while True:
        try:
            graph = _opened(source, header)
        except GraphDataError:
            if (again := _header(source)) == header:
                raise
        else:
            if (again := _header(source)) == header:
                return graph
        header = again  # another was saved meanwhile, and files of this one may be gone


def _opened(source: Path, header: dict[str, Any]) -> GraphStore:
    folder = source / header.get("arrays", "")
    arrays: dict[str, Any] = {name: _mapped(folder / f"{name}.npy") for name in _NAMES}
    labels, splits = folder / "labels.npy", {}
    for name in SPLITS:
        if (folder / f"{name}.npy").exists():
            splits[name] = _mapped(folder / f"{name}.npy")
    return GraphStore(
        name=str(header.get("name", source.name)),
        labels=_mapped(labels) if labels.exists() else None,
        splits=splits,
        classes=tuple(header.get("classes", ())),
        source=str(header.get("source", "")),
        folder=source,
        **arrays,
    )


def _arrays_of(folder: Path) -> Path | None:
    """Where the arrays of the graph in a folder lie; None where no header names any."""
    try:
        return folder / _header(folder).get("arrays", "")
    except (GraphDataError, OSError):
        return None


def _header(source: Path) -> dict[str, Any]:
    path = source / HEADER
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GraphDataError(
            f"{path}: no such file; make a graph folder with `supernet graph convert`"
        ) from None
    except OSError as error:
        raise GraphDataError(f"{path}: not readable ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise GraphDataError(f"{path}: not JSON ({error})") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise GraphDataError(f"{path}: expected an object with format {FORMAT}")
    arrays = header.get("arrays", _ARRAYS)
    if not isinstance(arrays, str) or not arrays.startswith(_ARRAYS) or Path(arrays).name != arrays:
        raise GraphDataError(f"{path}: arrays is {arrays!r}, allowed a folder named {_ARRAYS}...")
    classes = header.get("classes", [])
    if not isinstance(classes, list):
        raise GraphDataError(f"{path}: classes is {classes!r:.80}, allowed a list of their names")
    return header


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise GraphDataError(f"{path}: no such file; the graph folder is incomplete") from None
    except _UNREADABLE as error:
        raise GraphDataError(f"{path}: not a readable .npy file ({error})") from None


def _check(graph: GraphStore) -> None:
    where = str(graph.folder) if graph.folder else f"graph {graph.name!r}"
    indptr, indices = graph.indptr, graph.indices
    _check_kind(where, "indptr", indptr, np.int64, 1)
    _check_kind(where, "indices", indices, np.int32, 1)
    _check_kind(where, "features", graph.features, np.float32, 2)
    if len(indptr) < 2 or indptr[0] != 0 or np.any(np.diff(indptr) < 0):
        raise GraphDataError(f"{where}: indptr must begin at 0 and never fall, for 1 node or more")
    if indptr[-1] != len(indices):
        raise GraphDataError(f"{where}: indptr ends at {indptr[-1]} of {len(indices)} indices")
    num_nodes = graph.num_nodes
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < num_nodes:
        at = int(np.argmax((indices < 0) | (indices >= num_nodes)))
        raise GraphDataError(
            f"{where}: indices[{at}] is node {indices[at]}, allowed 0 to {num_nodes - 1}"
        )
    if len(graph.features) != num_nodes:
        raise GraphDataError(f"{where}: features of {len(graph.features)} nodes for {num_nodes}")
    if graph.labels is not None:
        _check_kind(where, "labels", graph.labels, np.int32, 1)
        if len(graph.labels) != num_nodes:
            raise GraphDataError(f"{where}: labels of {len(graph.labels)} nodes for {num_nodes}")
        if len(graph.labels) and (lowest := int(graph.labels.min())) < -1:
            raise GraphDataError(f"{where}: a label is {lowest}, allowed -1 (none) and above")
    for name, ids in graph.splits.items():
        _check_kind(where, name, ids, np.int32, 1)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < num_nodes:
            raise GraphDataError(f"{where}: {name} names a node outside 0 to {num_nodes - 1}")


def _check_kind(where: str, name: str, array: np.ndarray, dtype: Any, dims: int) -> None:
    if array.dtype != dtype or array.ndim != dims:
        wanted = f"{np.dtype(dtype).name} of {dims} dimension{'s' * (dims > 1)}"
        raise GraphDataError(f"{where}: {name} is {array.dtype} {array.shape}, expected {wanted}")
