"""Graphs of others: read as they are, refused with file and row."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from supernet.graphs.command import graph_app
from supernet.graphs.convert import read_edge_list, read_ogb, read_planetoid
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
