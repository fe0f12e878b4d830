"""Time of a node's query on the large graph, rung by rung, and how well its size is foretold.

One thread, in process, batch 1 unless said; every round visits all rungs in a new order with new
nodes, so a drift of the machine spreads over all. A peer (torch_geometric's layers on the subgraphs
that were sampled here) runs in an environment of its own, if there is one.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from serve.bench.graphs.large_graph import ASKED, FULL, RUNGS, LargeGraph
from serve.bench.rows import Row, Tell, row
from supernet.graphs.expected_size import SizeExpectation
from supernet.graphs.find_sampler import PLAIN, find_sampler

PEER_PYTHON = Path(".venv-graphs/bin/python")
_PEER = Path(__file__).with_name("geometric_peer.py")
_PEER_NODES = 300
_BATCH = 16


class NodeSpeed:
    """Measures one large graph; `rounds` are queries of each rung."""

    def __init__(self, large: LargeGraph, *, rounds: int, sized: int, tell: Tell):
        """`sized` is of how many nodes the foretold size is compared with the sampled one."""
        self._large, self._rounds, self._sized, self._tell = large, rounds, sized, tell
        self._executor = large.executor(_BATCH)
        self._where = (
            f"{large.graph.num_nodes:,} nodes, {large.graph.num_edges:,} edges, "
            f"{large.graph.num_features} features, one thread, sampler {find_sampler().name}"
        )

    def rungs(self) -> list[Row]:
        """The time of a query on every rung, and the ladder from the fastest to the slowest."""
        self._tell(f"{self._rounds} queries of each rung")
        seconds = self._timed(1, list(RUNGS))
        rows = [
            self._told(f"graphs/speed/{name}/{q}", float(np.percentile(times, share)) * 1e6, "us")
            for name, times in seconds.items()
            for q, share in (("p50", 50), ("p99", 99), ("max", 100))
        ]
        medians = {name: float(np.median(times)) for name, times in seconds.items()}
        rows.append(self._told("graphs/node_us", medians[ASKED] * 1e6, "us"))
        rows.append(self._ladder({name: m for name, m in medians.items() if name != FULL}))
        self._tell(f"batches of {_BATCH}")
        batched = self._timed(_BATCH, [ASKED])[ASKED]
        per_node = float(np.median(batched)) / _BATCH
        rows.append(self._told(f"graphs/node_us/batch{_BATCH}", per_node * 1e6, "us"))
        return rows

    def sizes(self) -> list[Row]:
        """The relative error of foretold sizes, nodes and edges, at the 95th percentile."""
        self._tell(f"foretold and sampled sizes of {self._sized} nodes")
        fanout = RUNGS[ASKED][1]
        expected = SizeExpectation(self._large.graph).at(fanout)
        rng = np.random.default_rng(1)
        errors: dict[str, list[float]] = {"nodes": [], "edges": []}
        for node in rng.integers(0, self._large.graph.num_nodes, self._sized):
            found = self._executor.sampled(self._large.subnet_ids[ASKED], np.array([node]))
            errors["nodes"].append(abs(float(expected.nodes[node]) / len(found.nodes) - 1.0))
            errors["edges"].append(abs(float(expected.edges[node]) / max(found.num_edges, 1) - 1.0))
        return [
            self._told(f"graphs/size_error/{what}/p95", float(np.percentile(found, 95)), "fraction")
            for what, found in errors.items()
        ]

    def peers(self, python: Path = PEER_PYTHON) -> list[Row]:
        """Ours, and torch_geometric's layers on the same subgraphs, sampling not counted there.

        Ours is measured before the peer and after it, so a drift of the machine meets both.
        """
        nodes = np.random.default_rng(2).integers(0, self._large.graph.num_nodes, _PEER_NODES)
        subnet_id = self._large.subnet_ids[ASKED]
        ours = self._each(subnet_id, nodes)
        plain = self._sampled_plainly(nodes)
        rows = [self._told("graphs/peers/plain_sampler", plain * 1e6, "us")]
        if python.exists():
            theirs = self._peer(python, subnet_id, nodes)
            ours += self._each(subnet_id, nodes)
            rows.append(self._told("graphs/peers/torch_geometric", theirs * 1e6, "us"))
            ratio = theirs / float(np.median(ours))
            rows.append(self._told("graphs/peers/torch_geometric_over_ours", ratio, "x"))
        else:
            reason = (
                f"{python} is not there: python -m venv .venv-graphs, then .venv-graphs/bin/pip "
                "install -r requirements-graphs.txt"
            )
            rows.append(row("graphs/peers/skipped", 1, "runs", {"reason": reason}, digits=None))
        return [self._told("graphs/peers/ours", float(np.median(ours)) * 1e6, "us"), *rows]

    def _ladder(self, medians: dict[str, float]) -> Row:
        fastest, *_, slowest = sorted(medians, key=medians.__getitem__)
        detail = {"where": self._where, "fastest": fastest, "slowest": slowest}
        return row("graphs/ladder", medians[slowest] / medians[fastest], "x", detail, digits=4)

    def _timed(self, size: int, names: list[str]) -> dict[str, list[float]]:
        rng = np.random.default_rng(0)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for number in range(-3, self._rounds):
            for i in rng.permutation(len(names)):
                nodes = rng.integers(0, self._large.graph.num_nodes, (size, 1))
                start_s = time.perf_counter()
                self._executor.run(self._large.subnet_ids[names[i]], nodes)
                if number >= 0:
                    seconds[names[i]].append(time.perf_counter() - start_s)
        return seconds

    def _each(self, subnet_id: str, nodes: np.ndarray) -> list[float]:
        times: list[float] = []
        for node in (*nodes[:5], *nodes):
            start_s = time.perf_counter()
            self._executor.run(subnet_id, np.array([[node]]))
            times.append(time.perf_counter() - start_s)
        return times[5:]

    def _sampled_plainly(self, nodes: np.ndarray) -> float:
        times: list[float] = []
        for node in nodes[:50]:
            start_s = time.perf_counter()
            PLAIN.sample(self._large.graph, np.array([node]), RUNGS[ASKED][1], 0)
            times.append(time.perf_counter() - start_s)
        return float(np.median(times))

    def _peer(self, python: Path, subnet_id: str, nodes: np.ndarray) -> float:
        """Median seconds of torch_geometric's layers on the sampled subgraphs."""
        graph = self._large.graph
        arrays: dict[str, np.ndarray] = {}
        for number, node in enumerate(nodes):
            sampled = self._executor.sampled(subnet_id, np.array([node]))
            arrays[f"x{number}"] = np.array(graph.features[sampled.nodes])
            arrays[f"n{number}"] = np.array([len(hop.indptr) - 1 for hop in sampled.hops])
            for hop, lists in enumerate(sampled.hops):
                targets = np.repeat(np.arange(len(lists.indptr) - 1), np.diff(lists.indptr))
                arrays[f"e{number}_{hop}"] = np.stack([lists.indices, targets])
        with TemporaryDirectory() as folder:
            path = Path(folder) / "subgraphs.npz"
            named: dict[str, Any] = arrays
            np.savez(path, **named)
            done = subprocess.run(
                [str(python), str(_PEER), str(path)], capture_output=True, text=True, check=False
            )
        if done.returncode:
            raise RuntimeError(f"{python} {_PEER.name}: {done.stderr.strip()[-500:]}")
        return float(json.loads(done.stdout)["p50_s"])

    def _told(self, figure: str, value: float, unit: str) -> Row:
        return row(figure, value, unit, {"where": self._where}, digits=4)
