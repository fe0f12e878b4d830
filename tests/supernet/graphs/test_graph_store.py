"""A graph's files: written, mapped, and refused where they contradict each other."""

from __future__ import annotations

import json
import shutil
import zipfile
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from supernet.graphs import graph_store
from supernet.graphs.edges import neighbour_lists
from supernet.graphs.graph_store import GraphDataError, GraphStore, open_graph


def test_a_saved_graph_is_mapped_again_as_it_was(skewed: GraphStore, tmp_path: Path) -> None:
    opened = skewed.save(tmp_path / "g")
    for name in ("indptr", "indices", "features", "labels"):
        array = getattr(opened, name)
        assert isinstance(array, np.memmap)
        np.testing.assert_array_equal(array, getattr(skewed, name))
    np.testing.assert_array_equal(opened.splits["test"], skewed.splits["test"])
    assert opened.digest() == skewed.digest()
    assert (opened.num_nodes, opened.num_features) == (800, 16)
    without = replace(skewed, labels=None, splits={}).save(tmp_path / "g")
    assert (without.labels, without.splits) == (None, {})


def test_a_save_that_is_stopped_leaves_what_was_there(
    skewed: GraphStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skewed.save(tmp_path / "old")
    (tmp_path / "old" / "note").write_text("of another program")
    save, written = np.save, []

    def stopped_at_the_third(path: Path, array: np.ndarray) -> None:
        written.append(path)
        if len(written) % 3 == 0:
            raise KeyboardInterrupt
        save(path, array)

    other = replace(skewed, name="other", features=skewed.features + 1)
    with monkeypatch.context() as patched:
        patched.setattr(np, "save", stopped_at_the_third)
        for name in ("old", "new"):
            with pytest.raises(KeyboardInterrupt):
                other.save(tmp_path / name)
    assert len(written) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    kept = open_graph(tmp_path / "old")
    np.testing.assert_array_equal(kept.features, skewed.features)
    np.testing.assert_array_equal(other.save(tmp_path / "old").features, skewed.features + 1)
    assert (tmp_path / "old" / "note").read_text() == "of another program"


def test_a_folder_that_has_no_graph_keeps_files_of_a_graph_s_names(
    skewed: GraphStore, tmp_path: Path
) -> None:
    """What a graph is made of may lie where it is saved: features.npy and labels.npy above all."""
    mine = {name: np.arange(9) for name in ("features", "labels", "train", "indices")}
    for name, array in mine.items():
        np.save(tmp_path / f"{name}.npy", array)
    for number in range(2):
        saved = replace(skewed, features=skewed.features + number).save(tmp_path)
        np.testing.assert_array_equal(saved.features, skewed.features + number)
        for name, array in mine.items():
            np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), array)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1, "the first one's go"


@pytest.mark.parametrize(("times", "least"), [(1, 16), (2, 4)], ids=["plain", "in a folder"])
def test_a_save_that_is_stopped_anywhere_leaves_one_graph_whole(
    skewed: GraphStore, tmp_path: Path, times: int, least: int
) -> None:
    def counted(method: str, stop: int, seen: list[str], patch: pytest.MonkeyPatch) -> None:
        original = getattr(Path, method)

        def stopped(path: Path, *args: Any, **options: Any) -> Any:
            seen.append(path.name)
            if len(seen) == stop:
                raise KeyboardInterrupt
            done = original(path, *args, **options)
            if len(seen) == -stop:
                raise KeyboardInterrupt
            return done

        patch.setattr(Path, method, stopped)

    other = _other(skewed)

    def is_stopped(folder: Path, stop: int) -> bool:
        """Save, and stop before that step, or right after it where it is negative."""
        seen: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            for method in ("replace", "unlink", "rename", "mkdir"):
                counted(method, stop, seen, patch)
            with suppress(KeyboardInterrupt):
                other.save(folder)
                return False
        return True

    outcomes = []
    for stop in chain.from_iterable((step, -step) for step in range(1, 30)):
        folder = tmp_path / str(stop)
        for _ in range(times):
            skewed.save(folder)
        if not is_stopped(folder, stop):
            break
        outcomes.append(_whole(open_graph(folder), skewed, other))
    assert {"skewed", "other"} == set(outcomes)
    assert len(outcomes) >= least
    assert len(list(folder.glob("**/*.npy"))) == 3  # nothing of the earlier graph


def test_a_graph_that_is_opened_while_another_is_saved_over_it_is_one_of_them(
    skewed: GraphStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = _other(skewed)
    mapped = graph_store._mapped
    for at in range(8):
        skewed.save(tmp_path / "g")
        seen: list[Path] = []

        def meanwhile(path: Path, at: int = at, seen: list[Path] = seen) -> np.ndarray:
            seen.append(path)
            if len(seen) == at + 1:
                with monkeypatch.context() as patched:
                    patched.setattr(graph_store, "_mapped", mapped)
                    other.save(tmp_path / "g")
            return mapped(path)

        with monkeypatch.context() as patched:
            patched.setattr(graph_store, "_mapped", meanwhile)
            opened = open_graph(tmp_path / "g")
        assert _whole(opened, skewed, other) == ("other" if at < len(seen) else "skewed")


def _other(graph: GraphStore) -> GraphStore:
    """As many nodes, other features and lists, no labels and no splits."""
    turned = graph.num_nodes - 1 - graph.indices
    return replace(
        graph, name="other", indices=turned, features=graph.features + 1, labels=None, splits={}
    )


def _whole(opened: GraphStore, *graphs: GraphStore) -> str:
    """Which of the graphs it is, in all its parts."""
    (wanted,) = (graph for graph in graphs if graph.name == opened.name)
    assert opened.digest() == wanted.digest()
    np.testing.assert_array_equal(opened.features, wanted.features)
    assert (opened.labels is None) == (wanted.labels is None)
    assert set(opened.splits) == set(wanted.splits)
    return opened.name


def test_neighbour_lists_leave_out_loops_and_repeats() -> None:
    sources, targets = np.array([0, 0, 1, 2, 2]), np.array([1, 1, 0, 2, 3])
    indptr, indices = neighbour_lists(sources, targets, 4, undirected=False)
    assert (indptr.tolist(), indices.tolist()) == ([0, 1, 2, 2, 3], [1, 0, 2])
    indptr, indices = neighbour_lists(sources, targets, 4, undirected=True)
    assert (indptr.tolist(), indices.tolist()) == ([0, 1, 2, 3, 4], [1, 0, 3, 2])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"indptr": np.array([0, 2, 1], np.int64)}, "never fall"),
        ({"indptr": np.array([0, 1, 3], np.int64)}, "indptr ends at 3 of 2 indices"),
        ({"indices": np.array([1, 2], np.int32)}, r"indices\[1\] is node 2, allowed 0 to 1"),
        ({"indices": np.array([1, 0], np.int64)}, "indices is int64 (2,), expected int32"),
        ({"features": np.zeros((3, 4), np.float32)}, "features of 3 nodes for 2"),
        ({"labels": np.zeros(1, np.int32)}, "labels of 1 nodes for 2"),
        ({"labels": np.array([0, -7], np.int32)}, r"a label is -7, allowed -1 \(none\) and above"),
        ({"splits": {"train": np.array([2], np.int32)}}, "train names a node outside 0 to 1"),
    ],
)
def test_arrays_that_contradict_each_other_are_refused(
    change: dict[str, object], said: str
) -> None:
    arrays: dict[str, object] = {
        "indptr": np.array([0, 1, 2], np.int64),
        "indices": np.array([1, 0], np.int32),
        "features": np.zeros((2, 4), np.float32),
    }
    GraphStore(name="two", **arrays)  # type: ignore[arg-type]
    with pytest.raises(GraphDataError, match=said.replace("(2,)", r"\(2,\)")):
        GraphStore(name="two", **(arrays | change))  # type: ignore[arg-type]


def test_a_folder_that_is_no_graph_says_what_is_missing(tmp_path: Path, skewed: GraphStore) -> None:
    with pytest.raises(
        GraphDataError, match=r"graph\.json: no such file; make .*supernet graph convert"
    ):
        open_graph(tmp_path)
    skewed.save(tmp_path / "g")
    (tmp_path / "g" / "features.npy").unlink()
    with pytest.raises(GraphDataError, match=r"features\.npy: no such file"):
        open_graph(tmp_path / "g")
    for arrays in ("../g", "arrays-1/..", 7, ""):
        header = json.dumps({"format": 1, "arrays": arrays})
        (tmp_path / "g" / "graph.json").write_text(header)
        with pytest.raises(GraphDataError, match=r"graph\.json: arrays is .*, allowed a folder"):
            open_graph(tmp_path / "g")
    (tmp_path / "g" / "graph.json").write_text("[]")
    with pytest.raises(GraphDataError, match="expected an object with format 1"):
        open_graph(tmp_path / "g")


def test_spoilt_files_of_a_graph_are_errors_that_name_them(
    tmp_path: Path, skewed: GraphStore
) -> None:
    folder = tmp_path / "g"
    for text, said in (
        ("[" * 100_000, r"graph\.json: not JSON"),
        ('{"format": 1, "classes": 5}', r"graph\.json: classes is 5, allowed a list"),
        (b"\xff", r"graph\.json: not JSON"),
    ):
        skewed.save(folder)
        (folder / "graph.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(GraphDataError, match=said):
            open_graph(folder)
        shutil.rmtree(folder)
    skewed.save(folder)
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**30},), }}\n".encode()
    beyond = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    for name in ("features", "labels"):
        path = folder / f"{name}.npy"
        whole = path.read_bytes()
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("x.npy", whole)
        archived = (tmp_path / "a.npz").read_bytes()
        for spoilt in (beyond, archived, b"PK\x03\x04" + bytes(60), whole[:-4]):
            path.write_bytes(spoilt)
            with pytest.raises(GraphDataError, match=rf"{name}\.npy: "):
                open_graph(folder)
        path.write_bytes(whole)
    with pytest.raises(GraphDataError, match=r"graph\.json: not readable \(Not a directory\)"):
        open_graph(folder / "indices.npy")
