"""Nodes of a graph as a batch: the fast path equals the plain one, alone as in any batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from subnetact import load_executor
from subnetact.nodes.node_executor import NodeExecutor
from supernet import (
    Checkpoint,
    CheckpointError,
    InputSpec,
    ServedSubnet,
    cost,
    define_supernet,
    load_checkpoint,
    save_checkpoint,
)
from supernet.graphs.generated import heterophilous
from supernet.graphs.graph_folder import GraphFolder
from supernet.graphs.graph_store import GraphDataError
from supernet.spec import parse_arch

ARCHS = ("smallest", "d=0", "d=1,f=5", "d=2,f=10", "d=2,w=0.5", "d=3,f=5", "largest")


def checkpoint_of(folder: Path, aggregator: str = "mean") -> Checkpoint:
    graph = heterophilous(num_nodes=1800, seed=3).save(folder / "graph")
    definition = define_supernet(
        "graph_sage", num_features=64, num_classes=5, width=16, aggregator=aggregator
    )
    torch.manual_seed(0)
    archs = dict.fromkeys(parse_arch(text, definition.space) for text in ARCHS)
    subnets = [
        ServedSubnet(
            arch=a, accuracy=0.5 + i / 100, ci95=(0.4, 0.6), **cost(definition, a)._asdict()
        )
        for i, a in enumerate(archs)
    ]
    return Checkpoint(
        name="nodes",
        definition=definition,
        input=InputSpec(channels=1, height=1, width=1, mean=(0.0,), std=(1.0,), kind="nodes"),
        state=definition.build().state_dict(),
        norm_statistics={},
        subnets=tuple(sorted(subnets, key=lambda s: (s.macs, s.subnet_id))),
        graph=GraphFolder(
            folder=folder / "graph", num_nodes=graph.num_nodes, digest=graph.digest()
        ),
    )


@pytest.mark.parametrize("aggregator", ["mean", "attention"])
def test_the_fast_path_equals_the_module_and_a_node_its_answer_in_any_batch(
    tmp_path: Path, aggregator: str
) -> None:
    checkpoint = checkpoint_of(tmp_path, aggregator)
    fast, plain = NodeExecutor(checkpoint), NodeExecutor(checkpoint, plain=True)
    nodes = np.array([[5], [1799], [0], [5], [77]])
    for subnet_id in fast.subnet_ids:
        logits = fast.run(subnet_id, nodes)
        np.testing.assert_allclose(logits, plain.run(subnet_id, nodes), atol=1e-5, rtol=1e-5)
        alone = np.concatenate([fast.run(subnet_id, node[None]) for node in nodes])
        np.testing.assert_allclose(logits, alone, atol=1e-5, rtol=1e-5)
        assert logits[:, 0].std() > 0


def test_few_nodes_are_one_compiled_call_and_equal_to_the_librarys_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr("subnetact.nodes.compiled_forward._MOST_PRODUCTS", 1 << 17)
    checkpoint = checkpoint_of(tmp_path)
    executor = NodeExecutor(checkpoint, max_batch_size=200, seed=3)
    plain = NodeExecutor(checkpoint, max_batch_size=200, plain=True, seed=3)
    sampled: list[tuple[str, int]] = []
    of_sampler = executor.sampled
    monkeypatch.setattr(
        executor,
        "sampled",
        lambda i, nodes: (sampled.append((i.split("-")[0], len(nodes))), of_sampler(i, nodes))[1],
    )
    # Products of a node, at most: 276 and 1,104 without neighbours, 2,128 of one hop, 23,120 of
    # two at fan-out 10, 77,392 of three at fan-out 5, of all neighbours as many as there may be.
    for subnet_id in executor.subnet_ids:
        for count in (1, 3, 200):
            nodes = np.random.default_rng(count).integers(0, 1800, (count, 1))
            logits = executor.run(subnet_id, nodes)
            assert logits.dtype == np.float32
            np.testing.assert_allclose(logits, plain.run(subnet_id, nodes), atol=1e-5, rtol=1e-5)
    by_library = set(sampled)
    assert ("d0", 200) in by_library
    assert ("d0", 3) not in by_library
    assert {("d1", 200), ("d2", 200), ("d3", 3), ("d3", 1)} <= by_library
    assert ("d1", 3) not in by_library
    assert sum(depth == "d3" and count == 1 for depth, count in sampled) == 1  # the largest


def test_ids_in_the_bytes_of_a_message_compile_nothing_after_the_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numba_dispatcher = pytest.importorskip("numba.core.dispatcher").Dispatcher
    checkpoint = checkpoint_of(tmp_path)
    read_only = np.frombuffer(np.array([5, 1799, 0]).tobytes(), np.int64)
    unaligned = np.frombuffer(b"{" + read_only.tobytes(), np.int64, offset=1)
    executor = NodeExecutor(checkpoint, max_batch_size=3)
    expected = {i: executor.run(i, read_only.copy()) for i in executor.subnet_ids}
    executor.warm_up()
    for most in (1 << 20, 0):  # in one compiled call, and by a library's products
        for compiled in executor._compiled.values():
            compiled._most_nodes = most
        executor.run(executor.subnet_ids[-1], np.array([1]))
        with monkeypatch.context() as patched:
            patched.setattr(numba_dispatcher, "compile", _never_compiled)
            for subnet_id, logits in expected.items():
                for nodes in (read_only, read_only[:, None], unaligned):
                    answer = executor.run(subnet_id, nodes)
                    np.testing.assert_allclose(answer, logits, atol=1e-5, rtol=1e-5)
                    sampled = executor.sampled(subnet_id, nodes.ravel())
                    np.testing.assert_array_equal(sampled.nodes[:3], read_only)
                executor.run(subnet_id, read_only[:1, None])


def _never_compiled(self: object, signature: object) -> None:
    raise AssertionError(f"{self} was compiled for {signature}")


def test_a_saved_checkpoint_finds_its_graph_wherever_the_folder_goes(tmp_path: Path) -> None:
    made = checkpoint_of(tmp_path / "run")
    save_checkpoint(made, tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    loaded = load_checkpoint(tmp_path / "moved")
    executor = load_executor(loaded)
    assert isinstance(executor, NodeExecutor)
    assert executor.sample.highest == 1799
    assert executor.run(executor.subnet_ids[0], np.array([3])).shape == (1, 5)
    with pytest.raises(ValueError, match="a value is 1800, allowed 0 to 1799"):
        executor.stage(np.array([1800]))
    with pytest.raises(ValueError, match=r"samples are float64 \(1,\), expected int32 or int64"):
        executor.stage(np.array([1.0]))
    with pytest.raises(ValueError, match="sampled and run on cpu alone"):
        load_executor(loaded, device="cuda")


def test_a_graph_that_does_not_fit_the_weights_is_refused(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path)
    heterophilous(num_nodes=1800, num_features=32).save(tmp_path / "graph")
    with pytest.raises(CheckpointError, match="32 features a node, the weights .* take 64"):
        NodeExecutor(checkpoint)
    heterophilous(num_nodes=1700).save(tmp_path / "graph")
    with pytest.raises(CheckpointError, match="1700 nodes, checkpoint 'nodes' was made with 1800"):
        NodeExecutor(checkpoint)
    same = heterophilous(num_nodes=1800, seed=3)
    changed = replace(same, indices=same.indices.copy())
    changed.indices[:2] = changed.indices[1::-1]  # as many nodes, edges and features, as it was
    changed.save(tmp_path / "graph")
    with pytest.raises(
        CheckpointError, match=r"graph: .* lists have changed \(digest [0-9a-f]{16}"
    ):
        NodeExecutor(checkpoint)
    same.save(tmp_path / "graph")
    assert NodeExecutor(checkpoint).graph.num_nodes == 1800
    with pytest.raises(
        CheckpointError, match=r"'heterophilous.*': the graph has 1700 nodes, .* 1800"
    ):
        NodeExecutor(checkpoint, graph=heterophilous(num_nodes=1700))
    assert NodeExecutor(checkpoint, graph=changed).graph.num_nodes == 1800
    (tmp_path / "graph" / "graph.json").unlink()
    with pytest.raises(GraphDataError, match=r"graph\.json: no such file"):
        NodeExecutor(checkpoint)
    with pytest.raises(CheckpointError, match="does not say of which graph"):
        NodeExecutor(replace(checkpoint, graph=None))


def test_work_is_what_two_hops_read_beside_the_median_nodes(tmp_path: Path) -> None:
    executor = NodeExecutor(checkpoint_of(tmp_path))
    graph = executor.graph
    sizes = np.array(
        [
            1 + len(mine) + sum(int(graph.degrees[u]) for u in mine)
            for mine in (
                graph.indices[graph.indptr[v] : graph.indptr[v + 1]] for v in range(graph.num_nodes)
            )
        ]
    )
    for node in (0, 5, 700):
        expected = sizes[node] / np.median(sizes)
        assert executor.work_of(np.array([[node]])) == pytest.approx(expected, rel=1e-4)
    heavy = executor.of_work(1.5, np.inf, 40, np.random.default_rng(0))
    assert len(heavy) == 40
    assert min(executor.work_of(node[None]) for node in heavy) > 1.5
