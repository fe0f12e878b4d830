"""Graphs of others: read as they are, refused with file and row."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from supernet.graphs.command import graph_app
from supernet.graphs.convert import read_edge_list, read_ogb, read_planetoid
from supernet.graphs.edges import neighbour_lists
from supernet.graphs.generated import heterophilous, power_law
from supernet.graphs.graph_store import GraphDataError, GraphStore, open_graph


def neighbours(graph: GraphStore, node: int) -> list[int]:
    return graph.indices[graph.indptr[node] : graph.indptr[node + 1]].tolist()


@pytest.mark.parametrize(
    "text", ["0 1\n1 2\n", "source,target\n0,1\n1,2\n", "# a graph\n0\t1\n\n1\t2\n"]
)
def test_an_edge_list_is_read_whatever_stands_between(tmp_path: Path, text: str) -> None:
    path = tmp_path / "small.csv"
    path.write_text(text)
    graph = read_edge_list(path)
    assert [neighbours(graph, node) for node in range(3)] == [[1], [0, 2], [1]]
    np.testing.assert_allclose(graph.features[:, 0], np.log1p([1, 2, 1]))
    directed = read_edge_list(path, undirected=False)
    assert [neighbours(directed, node) for node in range(3)] == [[], [0], [1]]


def test_features_and_labels_come_with_an_edge_list(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "edges.csv.gz", "wt") as file:
        file.write("0,3\n")
    (tmp_path / "x.csv").write_text("1,0.5\n2,0\n3,1\n4,1e-3\n")
    (tmp_path / "y.csv").write_text("0\n2\n-1\n1\n")
    graph = read_edge_list(
        tmp_path / "edges.csv.gz", features=tmp_path / "x.csv", labels=tmp_path / "y.csv"
    )
    assert graph.features[3].tolist() == [4.0, pytest.approx(1e-3)]
    assert graph.labels is not None
    assert graph.labels.tolist() == [0, 2, -1, 1]
    assert graph.classes == ("0", "1", "2")
    assert graph.num_nodes == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 1\n1 9\n", r"small\.csv, row 2: node 9, allowed 0 to 3"),
        ("a b\n# no\n0 1\n-1 2\n", r"small\.csv, row 4: node -1, allowed 0 to 3"),
        ("0 1\n1\n", r"small\.csv, row 2: 1 columns, expected 2"),
        ("0 1\n1 two\n", r"small\.csv, row 2: 'two' is not a whole number"),
        ("0 1\n1 2.5\n", r"small\.csv, row 2: '2.5' is not a whole number"),
        (f"0 1\n1 {2**70}\n", r"small\.csv, row 2: '\d+' is not a whole number"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "small.csv"
    path.write_text(text)
    np.save(tmp_path / "x.npy", np.zeros((4, 2), np.float32))
    with pytest.raises(GraphDataError, match=said):
        read_edge_list(path, features=tmp_path / "x.npy")


def test_features_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    (tmp_path / "edges").write_text("0 1\n")
    (tmp_path / "x.csv").write_text("1,2\n3,nan\n")
    with pytest.raises(GraphDataError, match=r"x\.csv, row 2: a feature is NaN"):
        read_edge_list(tmp_path / "edges", features=tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("1,2\n\n3,1e300\n")
    with pytest.raises(GraphDataError, match=r"x\.csv, row 3: .* too large for float32"):
        read_edge_list(tmp_path / "edges", features=tmp_path / "x.csv")
    for value in (1e300, np.nan, -np.inf):
        np.save(tmp_path / "x.npy", np.array([[1, 2], [3, value]]))
        with pytest.raises(GraphDataError, match=r"x\.npy, row 2: a feature is NaN"):
            read_edge_list(tmp_path / "edges", features=tmp_path / "x.npy")


@pytest.mark.parametrize(
    "before", ["# a, b, c\n", "\n\n", "a,b,c\n", "# of 5\n\na b c\n", "\ufeff"]
)
def test_features_may_begin_with_comments_blanks_and_words(tmp_path: Path, before: str) -> None:
    (tmp_path / "edges").write_text("\ufeff0 1\n")
    (tmp_path / "x.csv").write_text(f"{before}1,2,3\n4,5,6\n")
    graph = read_edge_list(tmp_path / "edges", features=tmp_path / "x.csv")
    assert graph.features.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert graph.num_edges == 2  # a mark of the byte order makes no header of a row
    (tmp_path / "x.csv").write_text(f"{before}1,2,3\n4,5\n")
    row = before.count("\n") + 2
    with pytest.raises(GraphDataError, match=rf"x\.csv, row {row}: 2 columns, expected 3"):
        read_edge_list(tmp_path / "edges", features=tmp_path / "x.csv")


def test_a_header_is_passed_over_however_far_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supernet.graphs.tables._ROWS_AT_ONCE", 2)
    (tmp_path / "edges").write_text("# 1\n# 2\n# 3\nsource target\n0 1\n1 2\n")
    assert read_edge_list(tmp_path / "edges").num_edges == 4


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0.0, np.nan], r"holds float64 (2,), expected whole numbers (n,)"),
        ([0, 2.7], r"holds float64 (2,), expected whole numbers"),
        ([True, False], r"holds bool (2,), expected whole numbers"),
        (["a", "b"], r"holds <U1 (2,), expected whole numbers"),
        ([[0, 1], [1, 0]], r"holds int64 (2, 2), expected whole numbers (n,)"),
        ([0, 2**32 + 1], "row 2: label 4294967297, allowed -1 to 999999"),
        (np.array([0, 2**64 - 1], np.uint64), "row 2: label 18446744073709551615, allowed -1"),
        ([-7, 0], "row 1: label -7, allowed -1 to 999999"),
        ([0, 10**9], "row 2: label 1000000000, allowed -1 to 999999"),
        ([0, 1, 0], "3 labels for 2 nodes"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path: Path, labels: object, said: str) -> None:
    (tmp_path / "edges").write_text("0 1\n")
    np.save(tmp_path / "x.npy", np.zeros((2, 1)))
    np.save(tmp_path / "y.npy", np.array(labels))
    with pytest.raises(GraphDataError, match=r"y\.npy.*" + re.escape(said)):
        read_edge_list(tmp_path / "edges", features=tmp_path / "x.npy", labels=tmp_path / "y.npy")


def test_labels_of_a_text_are_refused_by_their_row(tmp_path: Path) -> None:
    (tmp_path / "edges").write_text("0 1\n")
    for label in (-2, 2**31, 10**9):
        (tmp_path / "y.csv").write_text(f"label\n0\n\n{label}\n")
        with pytest.raises(GraphDataError, match=rf"y\.csv, row 4: label {label}, allowed -1 to"):
            read_edge_list(tmp_path / "edges", labels=tmp_path / "y.csv")


@pytest.mark.parametrize("node", [10**6, 2**31, 2**32 + 5, 10**12, 2**63 - 1])
def test_an_id_that_would_be_mostly_nodes_without_edges_is_named(tmp_path: Path, node: int) -> None:
    (tmp_path / "edges").write_text(f"0 1\n\n1 {node}\n0 2\n")
    said = rf"edges, row 3: node {node}, allowed 0 to 999999 for 3 edges without features"
    with pytest.raises(GraphDataError, match=said):
        read_edge_list(tmp_path / "edges")


def test_more_nodes_than_int32_numbers_are_refused() -> None:
    none = np.empty(0, np.int64)
    with pytest.raises(GraphDataError, match="2147483649 nodes, allowed up to 2147483648"):
        neighbour_lists(none, none, 2**31 + 1, undirected=True)


_PLANETOID: dict[str, Any] = {
    "feat_data": np.array([1, 3, 2], np.float32),
    "feat_indices": np.array([0, 1, 1], np.int32),
    "feat_indptr": np.array([0, 2, 3, 3], np.int32),
    "feat_shape": np.array([3, 2]),
    "edges": np.array([[0, 1], [1, 2]], np.int32),
    "labels": np.array([0, 1, -1], np.int16),
    "train": np.array([0]),
    "val": np.array([1]),
    "test": np.array([]),
}


def test_a_planetoid_archive_is_read_as_it_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", **_PLANETOID)
    graph = read_planetoid(tmp_path / "p.npz")
    assert graph.features.tolist() == [[0.25, 0.75], [0, 1], [0, 0]]
    assert [neighbours(graph, node) for node in range(3)] == [[1], [0, 2], [1]]
    assert graph.labels is not None
    assert graph.labels.tolist() == [0, 1, -1]
    splits = {name: ids.tolist() for name, ids in graph.splits.items()}
    assert splits == {"train": [0], "validation": [1], "test": []}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"feat_data": [1, np.nan, 2]}, "features, row 1: a feature is NaN"),
        ({"feat_data": [1, 3, 1e300]}, "features, row 2: a feature is NaN, infinite or too large"),
        ({"feat_data": [3e38, 3e38, 2]}, "divided by their sums, row 1: a feature is NaN"),
        ({"feat_data": [1, 3]}, "feat_data: holds int64 (2,), expected (3,)"),
        ({"feat_data": ["a", "b", "c"]}, "feat_data: holds <U1 (3,), expected (3,)"),
        ({"feat_indices": [0, 1, 2]}, "feat_indices, row 3: word 2, allowed 0 to 1"),
        ({"feat_indices": [0, 1, -1]}, "feat_indices, row 3: word -1, allowed 0 to 1"),
        ({"feat_indptr": [0, 2, 3]}, "feat_indptr: must go from 0 to 3"),
        ({"feat_indptr": [0, 3, 2, 3]}, "in 4 steps that never fall"),
        ({"feat_indptr": [0, 2, 2, 2]}, "feat_indptr: must go from 0 to 3"),
        ({"feat_shape": [3, 2, 1]}, "feat_shape: holds 3 sizes, expected 2"),
        ({"feat_shape": [3, 2**31]}, "3 x 2147483648 features are more than memory holds"),
        ({"edges": [[0, 1, 0], [1, 2, 2]]}, "edges: holds int64 (2, 3), expected whole numbers"),
        ({"edges": [0, 1]}, "edges: holds int64 (2,), expected whole numbers (n, 2)"),
        ({"edges": [[0, 1.5]]}, "edges: holds float64 (1, 2), expected whole numbers"),
        ({"edges": [[0, 1], [1, 3]]}, "edges, row 2: node 3, allowed 0 to 2"),
        ({"labels": [0, 1]}, "labels: 2 labels for 3 nodes"),
        ({"labels": [0, 1.5, 0]}, "labels: holds float64 (3,), expected whole numbers"),
        ({"train": [True, False, True]}, "the ids of a mask are numpy.flatnonzero(mask)"),
        ({"val": [0, 2**32]}, "val, row 2: node 4294967296, allowed 0 to 2"),
        ({"test": [-1]}, "test, row 1: node -1, allowed 0 to 2"),
    ],
)
def test_a_planetoid_archive_that_contradicts_itself_is_refused(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    arrays = _PLANETOID | {name: np.array(values) for name, values in change.items()}
    np.savez(tmp_path / "p.npz", **arrays)
    if "more than memory" in said:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(np, "zeros", _no_memory)
            with pytest.raises(GraphDataError, match=re.escape(said)):
                read_planetoid(tmp_path / "p.npz")
        return
    with pytest.raises(GraphDataError, match=r"p\.npz.*" + re.escape(said)):
        read_planetoid(tmp_path / "p.npz")


def _no_memory(*_: object, **__: object) -> None:
    raise MemoryError


def _header_of(shape: str) -> bytes:
    """An array of NumPy's without its numbers."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def _texts() -> bytes:
    """An archive of the names that a planetoid's has, of texts."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in _PLANETOID:
            archive.writestr(name, "0 1\n")
    return file.getvalue()


def _spoilt_files(folder: Path) -> dict[str, Path]:
    packed = gzip.compress(b"0 1\n" * 200)
    np.savez(folder / "whole.npz", **_PLANETOID)
    whole = (folder / "whole.npz").read_bytes()
    compressed = io.BytesIO()
    np.savez_compressed(compressed, **_PLANETOID)
    members = compressed.getvalue()
    single = io.BytesIO()
    np.save(single, np.zeros((2, 2)))
    files = {
        "corrupt.csv.gz": packed[:12] + b"\xff\xff\xff" + packed[15:],
        "truncated.csv.gz": packed[:-12],
        "no-gzip.csv.gz": b"0 1\n",
        "binary.csv": bytes(range(255, 0, -1)),
        "empty.npy": b"",
        "truncated.npy": single.getvalue()[:-8],
        "pickled.npy": b"\x80\x04K\x01.",
        "archive.npy": whole,
        "broken.npy": b"PK\x03\x04" + bytes(60),
        "empty.npz": b"",
        "broken.npz": whole[: len(whole) // 2],
        "spoilt.npz": members[:60] + bytes(20) + members[80:],
        "single.npz": single.getvalue(),
        "huge.npy": _header_of("(1099511627776,)"),
        "beyond.npy": _header_of(f"({10**30},)"),
        "texts.npz": _texts(),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return {name: folder / name for name in files}


def test_spoilt_files_are_errors_that_name_them(tmp_path: Path) -> None:
    (tmp_path / "edges").write_text("0 1\n")
    for name, path in _spoilt_files(tmp_path).items():
        asked: list[list[str]] = []
        if path.suffix == ".npz":
            asked = [[str(path)]]
        else:
            asked = [["edges", "--features", str(path)], ["edges", "--labels", str(path)]]
        if path.suffix in (".csv", ".gz"):
            asked.append([str(path)])
        for arguments in asked:
            given = [str(tmp_path / a) if a == "edges" else a for a in arguments]
            run = CliRunner().invoke(graph_app, ["convert", *given, "--out", str(tmp_path / "g")])
            assert run.exit_code == 2, (name, run.exception)
            assert f"{path}" in run.stderr, (name, run.stderr)
            assert not (tmp_path / "g").exists()


def _ogb(folder: Path) -> None:
    files = {
        "raw/num-node-list.csv": "4\n",
        "raw/node-feat.csv": "1,0\n0,1\n1,1\n0,0\n",
        "raw/edge.csv": "0,1\n2,3\n",
        "raw/node-label.csv": "0\n1\n1\n0\n",
        "split/time/train.csv": "0\n1\n",
        "split/time/valid.csv": "2\n",
        "split/time/test.csv": "3\n",
    }
    for name, text in files.items():
        path = folder / f"{name}.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt") as file:
            file.write(text)


def test_ogbs_layout_is_read_with_its_split(tmp_path: Path) -> None:
    _ogb(tmp_path / "ogbn-small")
    graph = read_ogb(tmp_path / "ogbn-small")
    assert (graph.name, graph.num_edges, graph.num_features) == ("ogbn-small", 4, 2)
    splits = {name: ids.tolist() for name, ids in graph.splits.items()}
    assert splits == {"train": [0, 1], "validation": [2], "test": [3]}
    with gzip.open(tmp_path / "ogbn-small/raw/edge.csv.gz", "wt") as file:
        file.write("0,1\n2,4\n")
    with pytest.raises(GraphDataError, match=r"edge\.csv\.gz, row 2: node 4, allowed 0 to 3"):
        read_ogb(tmp_path / "ogbn-small")
    (tmp_path / "ogbn-small/raw/edge.csv.gz").unlink()
    with pytest.raises(GraphDataError, match=r"edge\.csv: no such file, nor edge\.csv\.gz"):
        read_ogb(tmp_path / "ogbn-small")


def test_cora_is_as_published() -> None:
    folder = os.environ.get("SUPERNET_DATA_DIR")
    if not folder or not (Path(folder) / "planetoid" / "cora.npz").exists():
        pytest.skip("needs planetoid/cora.npz under SUPERNET_DATA_DIR")
    graph = read_planetoid(Path(folder) / "planetoid" / "cora.npz")
    assert (graph.num_nodes, graph.num_edges, graph.num_features) == (2708, 2 * 5278, 1433)
    assert {name: len(ids) for name, ids in graph.splits.items()} == {
        "train": 140,
        "validation": 500,
        "test": 1000,
    }
    np.testing.assert_allclose(graph.features.sum(1), 1.0, atol=1e-5)


def test_the_command_converts_and_tells(tmp_path: Path) -> None:
    (tmp_path / "e.txt").write_text("0 1\n1 2\n")
    run = CliRunner().invoke(
        graph_app, ["convert", str(tmp_path / "e.txt"), "--out", str(tmp_path / "g")]
    )
    assert run.exit_code == 0, run.output
    assert "3 nodes" in run.output
    told = CliRunner().invoke(graph_app, ["info", str(tmp_path / "g"), "--json"])
    assert json.loads(told.output)["degree"] == {"p50": 1.0, "p99": 1.98, "max": 2}
    (tmp_path / "e.txt").write_text("0 1\n1 x\n")
    run = CliRunner().invoke(
        graph_app, ["convert", str(tmp_path / "e.txt"), "--out", str(tmp_path / "h")]
    )
    assert run.exit_code == 2
    assert "row 2" in run.output
    assert not (tmp_path / "h").exists()


@pytest.mark.parametrize("text", ["", "# nothing\n", "source,target\n"])
def test_a_list_without_edges_tells_of_no_nodes(tmp_path: Path, text: str) -> None:
    """It had become a graph of one node."""
    (tmp_path / "edges").write_text(text)
    with pytest.raises(GraphDataError, match=r"edges: no edges, and neither features nor labels"):
        read_edge_list(tmp_path / "edges")
    (tmp_path / "y.csv").write_text("0\n1\n")
    assert read_edge_list(tmp_path / "edges", labels=tmp_path / "y.csv").num_nodes == 2


def test_options_of_another_kind_of_source_are_refused(tmp_path: Path) -> None:
    """They were passed over: the graph had features other than those that were given."""
    np.savez(tmp_path / "p.npz", **_PLANETOID)
    _ogb(tmp_path / "ogb")
    np.save(tmp_path / "x.npy", np.zeros((3, 1)))
    own = ["--features", str(tmp_path / "x.npy")]
    for source, options, said in (
        ("p.npz", own, "--features: not for a source of kind planetoid"),
        ("p.npz", ["--directed", "--labels", own[1]], "--labels, --directed: not for a source"),
        ("ogb", own, "--features: not for a source of kind ogb"),
    ):
        command = ["convert", str(tmp_path / source), *options, "--out", str(tmp_path / "g")]
        run = CliRunner().invoke(graph_app, command)
        assert run.exit_code == 2, run.output
        assert said in run.stderr
        assert not (tmp_path / "g").exists()
    command = ["convert", str(tmp_path / "ogb"), "--directed", "--out", str(tmp_path / "g")]
    assert CliRunner().invoke(graph_app, command).exit_code == 0


def test_what_can_not_be_generated_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ["--out", str(tmp_path / "g")]
    for option in (["--seed", "-1"], ["--nodes", str(2**31 + 1)]):
        run = CliRunner().invoke(graph_app, ["generate", *option, *out])
        assert run.exit_code == 2, run.exception
        assert option[0] in run.stderr
    monkeypatch.setattr("supernet.graphs.generated.neighbour_lists", _no_memory)
    run = CliRunner().invoke(graph_app, ["generate", "--nodes", "10", "--edges", "9", *out])
    assert run.exit_code == 2, run.exception
    assert "more than memory holds" in run.stderr


def test_generated_graphs_are_functions_of_their_seed(tmp_path: Path) -> None:
    first, again, other = (power_law(num_nodes=3000, num_edges=24000, seed=s) for s in (0, 0, 1))
    assert first.digest() == again.digest() != other.digest()
    assert 0.9 * 24000 < first.num_edges <= 24000
    degrees = first.degrees
    assert degrees.max() > 20 * np.median(degrees)
    run = CliRunner().invoke(
        graph_app,
        [
            "generate",
            "power-law",
            "--nodes",
            "3000",
            "--edges",
            "24000",
            "--out",
            str(tmp_path / "p"),
        ],
    )
    assert run.exit_code == 0, run.output
    assert open_graph(tmp_path / "p").digest() == first.digest()


def test_neighbours_are_of_other_classes_where_that_was_asked_for() -> None:
    graph = heterophilous(homophily=0.1)
    assert graph.labels is not None
    rows = np.repeat(np.arange(graph.num_nodes), graph.degrees)
    share = float((graph.labels[rows] == graph.labels[graph.indices]).mean())
    assert 0.07 < share < 0.13
    assert not set(graph.splits["train"]) & set(graph.splits["test"])
