"""Graphs of others to a graph folder: lists of edges, planetoid archives, OGB's node layout.

Every error names the file and the row (the first row of a file is 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from supernet.graphs.arrays import (
    check_range,
    feature_matrix,
    read_npy,
    read_npz,
    whole_numbers,
)
from supernet.graphs.edges import neighbour_lists
from supernet.graphs.graph_store import GraphDataError, GraphStore
from supernet.graphs.tables import read_numbers

_MOST_CLASSES = 1_000_000  # a label beyond is a node's id or a slip, and each class has a name
# How many nodes a list of edges alone may tell of: those that none names take memory too.
_NODES_AN_EDGE, _NODES_ALWAYS, _MOST_NODES = 100, 1_000_000, 2**31
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
    numbers, -1 for none. Without features a node has one, its degree's logarithm; without labels
    too there are as many nodes as the largest id says.
    """
    matrix = None if features is None else _matrix(features)
    given = None if labels is None else _labels(labels)
    rows, numbers = read_numbers(path, columns=2, whole=True)
    sized = given if matrix is None else matrix
    num_nodes = _num_nodes(path, rows, numbers) if sized is None else len(sized)
    _check_nodes(str(path), rows, num_nodes, numbers)
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
    arrays = read_npz(path)
    wanted = {"feat_data", "feat_indices", "feat_indptr", "feat_shape", "edges", "labels"}
    missing = sorted((wanted | {"train", "val", "test"}) - arrays.keys())
    if missing:
        raise GraphDataError(f"{path}: lacks the arrays {', '.join(missing)}")
    features = _bag_of_words(arrays, path)
    num_nodes = len(features)
    edges = _nodes(arrays["edges"], f"{path}, edges", num_nodes, columns=2)
    indptr, indices = neighbour_lists(edges[:, 0], edges[:, 1], num_nodes, undirected=True)
    labels = _checked_labels(arrays["labels"], f"{path}, labels", num_nodes)
    ids = {"train": "train", "validation": "val", "test": "test"}
    return GraphStore(
        name=path.stem,
        indptr=indptr,
        indices=indices,
        features=features,
        labels=labels,
        splits={
            name: _nodes(arrays[given], f"{path}, {given}", num_nodes)[:, 0].astype(np.int32)
            for name, given in ids.items()
        },
        classes=_class_names(labels),
        source=f"planetoid {path.name}",
    )


def read_ogb(folder: Path, *, undirected: bool = True) -> GraphStore:
    """Read the folder of an OGB node data set (Hu et al., NeurIPS 2020): raw/ and split/*/."""
    raw = folder / "raw"
    counts, _ = read_numbers(_either(raw / "num-node-list.csv"), columns=1, whole=True)
    num_nodes = sum(counts[:, 0].tolist())
    path = _either(raw / "node-feat.csv")
    features = _matrix(path)
    if len(features) != num_nodes:
        raise GraphDataError(f"{path}: {len(features)} rows for {num_nodes} nodes")
    path = _either(raw / "edge.csv")
    edges, numbers = read_numbers(path, columns=2, whole=True)
    _check_nodes(str(path), edges, num_nodes, numbers)
    indptr, indices = neighbour_lists(edges[:, 0], edges[:, 1], num_nodes, undirected=undirected)
    labels = _labels(_either(raw / "node-label.csv"), num_nodes)
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
        _check_nodes(str(path), ids, num_nodes, numbers)
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
        return feature_matrix(read_npy(path), str(path))
    matrix, numbers = read_numbers(path, columns=None, whole=False)
    return feature_matrix(matrix, str(path), numbers)


def _labels(path: Path, num_nodes: int | None = None) -> np.ndarray:
    """(nodes,) int32 of a .npy or a text file."""
    if path.suffix == ".npy":
        return _checked_labels(read_npy(path), str(path), num_nodes)
    rows, numbers = read_numbers(path, columns=1, whole=True)
    return _checked_labels(rows, str(path), num_nodes, numbers)


def _checked_labels(
    labels: np.ndarray, where: str, num_nodes: int | None, rows: np.ndarray | None = None
) -> np.ndarray:
    checked = whole_numbers(labels, where, what="label", low=-1, high=_MOST_CLASSES - 1, rows=rows)
    if num_nodes is not None and len(checked) != num_nodes:
        raise GraphDataError(f"{where}: {len(checked)} labels for {num_nodes} nodes")
    return checked[:, 0].astype(np.int32)


def _num_nodes(path: Path, edges: np.ndarray, numbers: np.ndarray) -> int:
    """As many as the largest id says, unless by far the most of them were in no edge."""
    if not len(edges):
        raise GraphDataError(
            f"{path}: no edges, and neither features nor labels say how many nodes there are"
        )
    most = min(max(_NODES_ALWAYS, _NODES_AN_EDGE * len(edges)), _MOST_NODES)
    largest = int(edges.max())
    if largest >= most:
        row = numbers[int(edges.max(axis=1).argmax())]
        raise GraphDataError(
            f"{path}, row {row}: node {largest}, allowed 0 to {most - 1} for {len(edges)} edges "
            "without features or labels to say how many nodes there are; number them from 0"
        )
    return largest + 1


def _nodes(array: np.ndarray, where: str, num_nodes: int, columns: int = 1) -> np.ndarray:
    return whole_numbers(array, where, what="node", low=0, high=num_nodes - 1, columns=columns)


def _check_nodes(where: str, ids: np.ndarray, num_nodes: int, rows: np.ndarray) -> None:
    """Raise GraphDataError for the first row that names a node that there is not."""
    check_range(ids, where, what="node", low=0, high=num_nodes - 1, rows=rows)


def _class_names(labels: np.ndarray | None) -> tuple[str, ...]:
    if labels is None:
        return ()
    return tuple(str(label) for label in range(int(labels.max(initial=-1)) + 1))


def _bag_of_words(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
    """(nodes, words) float32 of a CSR matrix whose rows are divided by their sums."""
    num_nodes, num_words = _shape(arrays["feat_shape"], path)
    values, given = arrays["feat_data"], arrays["feat_indices"]
    words = whole_numbers(given, f"{path}, feat_indices", what="word", low=0, high=num_words - 1)[
        :, 0
    ]
    starts = whole_numbers(
        arrays["feat_indptr"], f"{path}, feat_indptr", what="place", low=0, high=len(words)
    )[:, 0]
    counts = np.diff(starts)
    is_whole = len(starts) == num_nodes + 1 and starts[0] == 0 and starts[-1] == len(words)
    if not is_whole or np.any(counts < 0):
        raise GraphDataError(
            f"{path}, feat_indptr: must go from 0 to {len(words)}, as many as feat_indices, in "
            f"{num_nodes + 1} steps that never fall"
        )
    if values.shape != words.shape or values.dtype.kind not in "buif":
        raise GraphDataError(
            f"{path}, feat_data: holds {values.dtype} {values.shape}, expected {words.shape}"
        )
    try:
        features = np.zeros((num_nodes, num_words), dtype=np.float32)
    except (MemoryError, ValueError):
        raise GraphDataError(
            f"{path}, feat_shape: {num_nodes} x {num_words} features are more than memory holds"
        ) from None
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # found when checked
        features[np.repeat(np.arange(num_nodes), counts), words] = values
        sums = feature_matrix(features, f"{path}, features").sum(1, keepdims=True)
        shares = features / np.where(sums == 0, 1, sums)
    shares[~np.isfinite(sums[:, 0])] = np.nan  # all zeros where the sum alone is too large
    return feature_matrix(shares, f"{path}, features divided by their sums")


def _shape(given: np.ndarray, path: Path) -> tuple[int, int]:
    sizes = whole_numbers(given, f"{path}, feat_shape", what="size", low=1, high=2**31)[
        :, 0
    ].tolist()
    if len(sizes) != 2:
        raise GraphDataError(f"{path}, feat_shape: holds {len(sizes)} sizes, expected 2")
    return sizes[0], sizes[1]
