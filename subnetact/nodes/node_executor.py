"""`NodeExecutor`: runs batches of nodes of one graph on the subnets of one resident supernet.

A sample is a node's id. What it reads is sampled when its batch runs; nodes that several queries
of a batch reach are read and computed once. Mean aggregation runs straight from the graph's file
(`mean_forward.py`, few nodes in one call of `compiled_forward.py`); other aggregators, and the
plain twin, as the family's module on operators.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from subnetact.executor import NO_CACHE, HostLaunched, StagingExecutor, check_batch, warm_up
from subnetact.nodes.mean_forward import MeanForward
from subnetact.threads import ThreadCount
from subnetact.views.actuator import Actuator
from supernet.arch import Arch
from supernet.checkpoint import Checkpoint, CheckpointError
from supernet.graphs.code_cache import missing
from supernet.graphs.expected_size import SizeExpectation
from supernet.graphs.find_sampler import find_sampler
from supernet.graphs.graph_folder import GraphFolder
from supernet.graphs.graph_store import GraphStore, open_graph
from supernet.graphs.sampler import SampledNodes
from supernet.layers.neighbours import Hop, Neighbourhood

if TYPE_CHECKING:
    from subnetact.nodes.compiled_forward import CompiledForward


class NodeExecutor(StagingExecutor):
    """Samples neighbourhoods and computes logits, on the calling thread of a CPU."""

    device = "cpu"
    packing = "views"
    dtype = "float32"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        graph: GraphStore | None = None,
        threads: int | None = 1,
        max_batch_size: int = 16,
        subnet_ids: Iterable[str] | None = None,
        plain: bool = False,
        seed: int = 0,
    ):
        """Open the checkpoint's graph (or take another with as many nodes and features).

        `plain` runs the twin of the fast path; `seed` is what sampled hops are drawn with. Raises
        CheckpointError for a graph that does not fit the weights, for the checkpoint's own whose
        neighbour lists are no longer those it was made with, or a subnet that is not served,
        GraphDataError for files that are missing or malformed, ValueError for a number below one.
        """
        for name, value in (("threads", threads), ("max_batch_size", max_batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, allowed 1 or more")
        self._graph = _plain_arrays(_graph_of(checkpoint, graph))
        self.threads = threads
        self.max_batch_size = max_batch_size
        self.sample = checkpoint.sample
        self.num_classes = checkpoint.num_classes
        self._sampler = find_sampler()
        self.details = f"sampler {self._sampler.name}"
        self._seed = seed
        self._thread_count = ThreadCount(threads)
        definition = checkpoint.definition
        net = definition.on_meta()
        net.load_state_dict(dict(checkpoint.state), strict=True, assign=True)
        self._net = net.requires_grad_(False)
        self._actuator = Actuator(self._net, definition)
        self._archs: dict[str, Arch] = {}
        self._fast: dict[str, MeanForward] = {}
        self._compiled: dict[str, CompiledForward] = {}
        config: Any = definition.config
        is_mean = config.aggregator == "mean"
        for subnet_id in checkpoint.subnet_ids if subnet_ids is None else tuple(subnet_ids):
            arch = checkpoint.subnet(subnet_id).arch
            self._archs[self._actuator.register(arch, {})] = arch
            if is_mean and not plain:
                shapes = definition.parameter_shapes(arch)
                fast = MeanForward(arch, checkpoint.state, shapes)
                self._fast[subnet_id] = fast
                if not missing():
                    self._compiled[subnet_id] = fast.compiled(self._graph, seed)
        self._work = SizeExpectation(self._graph).two_hops

    @property
    def graph(self) -> GraphStore:
        """The graph whose nodes are the samples."""
        return self._graph

    @property
    def subnet_ids(self) -> tuple[str, ...]:
        """Ids of the subnets that can be run."""
        return tuple(self._archs)

    def work_of(self, slot: np.ndarray) -> float:
        """Return the predicted work of staged nodes (n, 1) beside the median node's: their mean."""
        return float(self._work[slot[:, 0]].mean())

    def of_work(self, low: float, high: float, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw `count` nodes (count, 1) whose work is above `low` and at most `high`; maybe none.

        A profile of work measures its buckets on them.
        """
        found = np.flatnonzero((self._work > low) & (self._work <= high))
        drawn = found[rng.integers(0, len(found), count)] if len(found) else found
        return drawn.astype(np.int64).reshape(-1, 1)

    def work_quantiles(self, shares: Sequence[float]) -> list[float]:
        """Return the work below which such shares of the nodes lie."""
        return [float(value) for value in np.quantile(self._work, shares)]

    def sampled(self, subnet_id: str, nodes: np.ndarray) -> SampledNodes:
        """Return what a subnet reads for nodes (B,)."""
        fanout = self._archs[subnet_id].fanout
        return self._sampler.sample(self._graph, nodes, fanout, self._seed)

    def launch(self, subnet_id: str, slots: Sequence[np.ndarray]) -> HostLaunched:
        """See `Executor`: sample, compute, and return the logits on the host."""
        nodes = slots[0] if len(slots) == 1 else np.concatenate(slots)
        check_batch(len(nodes), self.max_batch_size)
        if not nodes.flags.carray:  # a message's own bytes: compiled code would be compiled anew
            nodes = nodes.copy()
        compiled = self._compiled.get(subnet_id)
        if compiled is not None and compiled.takes(len(nodes)):
            return HostLaunched(compiled.logits(nodes), "views")
        return self._computed(subnet_id, nodes[:, 0])

    @torch.inference_mode()
    def _computed(self, subnet_id: str, nodes: np.ndarray) -> HostLaunched:
        self._thread_count.use()
        sampled = self.sampled(subnet_id, nodes)
        fast = self._fast.get(subnet_id)
        if fast is not None:
            logits = fast.logits(self._graph, sampled, self._sampler)
        else:
            logits = self._plain(subnet_id, sampled)
        return HostLaunched(logits.numpy()[sampled.asked], "views")

    def result(self, launched: HostLaunched) -> np.ndarray:
        """See `Executor`."""
        return launched.logits

    def warm_up(self) -> None:
        """Run every subnet at the largest and the smallest batch size."""
        warm_up(self)

    def counts(self) -> Mapping[str, int]:
        """See `Executor`: nothing is held besides the weights and the graph."""
        return NO_CACHE

    def close(self) -> None:
        """Nothing is held beyond the arrays themselves."""

    def _plain(self, subnet_id: str, sampled: SampledNodes) -> torch.Tensor:
        self._actuator.actuate(subnet_id)
        features = torch.from_numpy(np.array(self._graph.features[sampled.nodes]))
        hops = tuple(
            Hop(torch.from_numpy(hop.indptr), torch.from_numpy(hop.indices)) for hop in sampled.hops
        )
        return self._net(Neighbourhood(features, hops))


def _graph_of(checkpoint: Checkpoint, given: GraphStore | None) -> GraphStore:
    """Return the graph that is served: the checkpoint's own as it was, or another of its sizes."""
    made_with = checkpoint.graph
    if made_with is None:
        raise CheckpointError(f"{checkpoint.name}: takes nodes, and does not say of which graph")
    graph = open_graph(made_with.folder) if given is None else given
    _check_sizes(checkpoint, made_with, graph)
    if given is None:
        _check_lists(checkpoint, made_with, graph)
    return graph


def _plain_arrays(graph: GraphStore) -> GraphStore:
    """The same memory as ordinary arrays: compiled code takes longer to recognise mapped ones."""
    arrays = {n: np.asarray(getattr(graph, n)) for n in ("indptr", "indices", "features")}
    return replace(graph, **arrays)


def _check_sizes(checkpoint: Checkpoint, made_with: GraphFolder, graph: GraphStore) -> None:
    """Refuse a graph that lacks a node that may be asked for, or has other features."""
    where = str(graph.folder) if graph.folder else f"graph {graph.name!r}"
    if graph.num_nodes != made_with.num_nodes:
        raise CheckpointError(
            f"{where}: the graph has {graph.num_nodes} nodes, checkpoint {checkpoint.name!r} was "
            f"made with {made_with.num_nodes}"
        )
    config: Any = checkpoint.definition.config
    if graph.num_features != config.num_features:
        raise CheckpointError(
            f"{where}: the graph has {graph.num_features} features a node, the weights of "
            f"checkpoint {checkpoint.name!r} take {config.num_features}"
        )


def _check_lists(checkpoint: Checkpoint, made_with: GraphFolder, graph: GraphStore) -> None:
    """Refuse neighbour lists that are not those of then; reads them once, as opening does."""
    digest = graph.digest() if made_with.digest else ""
    if digest != made_with.digest:
        raise CheckpointError(
            f"{graph.folder}: the graph's neighbour lists have changed (digest {digest}) since "
            f"checkpoint {checkpoint.name!r} was made with them ({made_with.digest}), so its "
            "accuracies do not hold; put the graph back as it was, or train on this one"
        )
