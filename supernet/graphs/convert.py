"""Graphs of others to a graph folder: lists of edges, planetoid archives, OGB's node layout.

Every error names the file and the row (the first row of a file is 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from supernet.graphs.edges import neighbour_lists
from supernet.graphs.graph_store import GraphDataError, GraphStore
from supernet.graphs.tables import open_text, read_numbers

_OGB_SPLITS = {"train": "train", "valid": "validation", "test": "test"}


def read_edge_list(
    path: Path,
    *,
    features: Path | None = None,
    labels: Path | None = None,
    undirected: bool = True,
) -> GraphStore:
    """Read rows of `source target` (commas, tabs or spaces; `#` and a header are passed over).

    `features` is a .npy file (nodes, F), or a text file with a row per node; `labels` one of whole
    numbers, -1 for none. Without features there are as many nodes as the largest id says, each with
    one feature, its degree's logarithm.
    """
    matrix = None if features is None else _matrix(features)
    given = None if labels is None else _labels(labels)
    rows, numbers = read_numbers(path, columns=2, whole=True)
    num_nodes = _num_nodes(matrix, given, rows)
    _check_ends(path, rows, numbers, num_nodes)
    indptr, indices = neighbour_lists(rows[:, 0], rows[:, 1], num_nodes, undirected=undirected)
    if matrix is None:
        matrix = np.log1p(np.diff(indptr)).astype(np.float32)[:, None]
    if given is not None and len(given) != num_nodes:
        raise GraphDataError(f"{labels}: {len(given)} labels for {num_nodes} nodes")
    return GraphStore(
        name=path.name.partition(".")[0],
        indptr=indptr,
        indices=indices,
        features=matrix,
        labels=given,
        classes=_class_names(given),
        source=f"edge list {path.name}",
    )


def read_planetoid(path: Path) -> GraphStore:
    """Read an .npz of Cora, Citeseer or Pubmed with their public split (Yang et al., ICML 2016).

    It holds the bag of words as CSR (feat_data, feat_indices, feat_indptr, feat_shape), `edges`
    (each once), `labels` (-1: none), and ids `train, val, test`. Rows of features are divided by
    their sums, as is usual.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise GraphDataError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise GraphDataError(f"{path}: not an .npz archive ({error})") from None
    wanted = {"feat_data", "feat_indices", "feat_indptr", "feat_shape", "edges", "labels"}
    missing = sorted((wanted | {"train", "val", "test"}) - arrays.keys())
    if missing:
        raise GraphDataError(f"{path}: lacks the arrays {', '.join(missing)}")
    features = _bag_of_words(arrays)
    edges, num_nodes = arrays["edges"].astype(np.int64), len(features)
    _check_ends(path, edges, np.arange(1, len(edges) + 1), num_nodes, what="edges")
    indptr, indices = neighbour_lists(edges[:, 0], edges[:, 1], num_nodes, undirected=True)
    labels = arrays["labels"].astype(np.int32)
    ids = {"train": "train", "validation": "val", "test": "test"}
    return GraphStore(
        name=path.stem,
        indptr=indptr,
        indices=indices,
        features=features,
        labels=labels,
        splits={name: arrays[given].astype(np.int32) for name, given in ids.items()},
        classes=_class_names(labels),
        source=f"planetoid {path.name}",
    )


def read_ogb(folder: Path, *, undirected: bool = True) -> GraphStore:
    """Read the folder of an OGB node data set (Hu et al., NeurIPS 2020): raw/ and split/*/."""
    raw = folder / "raw"
    counts, _ = read_numbers(_either(raw / "num-node-list.csv"), columns=1, whole=True)
    num_nodes = int(counts.sum())
    features = _matrix(_either(raw / "node-feat.csv"))
    if len(features) != num_nodes:
        raise GraphDataError(
            f"{_either(raw / 'node-feat.csv')}: {len(features)} rows for {num_nodes} nodes"
        )
    path = _either(raw / "edge.csv")
    edges, numbers = read_numbers(path, columns=2, whole=True)
    _check_ends(path, edges, numbers, num_nodes)
    indptr, indices = neighbour_lists(edges[:, 0], edges[:, 1], num_nodes, undirected=undirected)
    labels = _labels(_either(raw / "node-label.csv"))
    if len(labels) != num_nodes:
        raise GraphDataError(
            f"{raw / 'node-label.csv'}: {len(labels)} labels for {num_nodes} nodes"
        )
    return GraphStore(
        name=folder.name,
        indptr=indptr,
        indices=indices,
        features=features,
        labels=labels,
        splits=dict(_ogb_splits(folder, num_nodes)),
        classes=_class_names(labels),
        source=f"OGB {folder.name}",
    )


def _ogb_splits(folder: Path, num_nodes: int) -> Iterator[tuple[str, np.ndarray]]:
    found = sorted((folder / "split").glob("*/train.csv*"))
    for theirs, ours in _OGB_SPLITS.items() if found else ():
        path = _either(found[0].parent / f"{theirs}.csv")
        ids, numbers = read_numbers(path, columns=1, whole=True)
        _check_ends(path, ids, numbers, num_nodes)
        yield ours, ids[:, 0].astype(np.int32)


def _either(path: Path) -> Path:
    """The file, or the same compressed. Raises GraphDataError when there is neither."""
    packed = path.with_name(path.name + ".gz")
    for each in (path, packed):
        if each.exists():
            return each
    raise GraphDataError(f"{path}: no such file, nor {packed.name}")


def _matrix(path: Path) -> np.ndarray:
    """(nodes, F) float32, finite, of a .npy or a text file."""
    if path.suffix == ".npy":
        try:
            matrix = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise GraphDataError(f"{path}: not a readable .npy file ({error})") from None
        if matrix.ndim != 2 or matrix.dtype.kind not in "buif":
            raise GraphDataError(
                f"{path}: holds {matrix.dtype} {matrix.shape}, expected (nodes, F)"
            )
        numbers = np.arange(1, len(matrix) + 1)
    else:
        with open_text(path) as file:
            columns = len(file.readline().replace(",", " ").split())
        matrix, numbers = read_numbers(path, columns=columns, whole=False)
    wrong = np.flatnonzero(~np.isfinite(matrix).all(1))
    if len(wrong):
        raise GraphDataError(f"{path}, row {numbers[wrong[0]]}: a feature is NaN or infinite")
    return np.ascontiguousarray(matrix, dtype=np.float32)


def _labels(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        rows: Any = np.load(path, allow_pickle=False).reshape(-1, 1)
    else:
        rows, _ = read_numbers(path, columns=1, whole=True)
    return rows[:, 0].astype(np.int32)


def _num_nodes(matrix: np.ndarray | None, labels: np.ndarray | None, edges: np.ndarray) -> int:
    if matrix is not None:
        return len(matrix)
    if labels is not None:
        return len(labels)
    return int(edges.max(initial=0)) + 1


def _check_ends(
    path: Path, edges: np.ndarray, numbers: np.ndarray, num_nodes: int, what: str = ""
) -> None:
    """Raise GraphDataError for the first row that names a node that there is not."""
    wrong = np.argwhere((edges < 0) | (edges >= num_nodes))
    if len(wrong):
        row, column = wrong[0]
        raise GraphDataError(
            f"{path}, {what + ' ' if what else ''}row {numbers[row]}: node {edges[row, column]}, "
            f"allowed 0 to {num_nodes - 1}"
        )


def _class_names(labels: np.ndarray | None) -> tuple[str, ...]:
    if labels is None:
        return ()
    return tuple(str(label) for label in range(int(labels.max(initial=-1)) + 1))


def _bag_of_words(arrays: dict[str, np.ndarray]) -> np.ndarray:
    num_nodes, num_words = (int(size) for size in arrays["feat_shape"])
    counts = np.diff(arrays["feat_indptr"])
    rows = np.repeat(np.arange(num_nodes), counts)
    features = np.zeros((num_nodes, num_words), dtype=np.float32)
    features[rows, arrays["feat_indices"]] = arrays["feat_data"]
    sums = features.sum(1, keepdims=True)
    return features / np.where(sums == 0, 1, sums)
