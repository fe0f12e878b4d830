"""`HardwareProfile`: what a worker computes, reads and sends, and iteration costs by the roofline.

For devices and grids of workers that are not at hand: a layer takes the longer of its arithmetic
and of reading its weights (Williams et al., CACM 2009), a decode reads its keys and values, a chunk
computes its pairs, exchanges take latency and bytes. Whatever reports a figure made with it says
that it is simulated, and names the profile.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slackfit.profile import ProfileError
from slackfit.streams.iteration_cost import CostCurve, IterationCost, IterationCosts
from slackfit.streams.parallel_cost import ParallelCost


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A connection between two workers, one way."""

    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """A decoder's sizes, and its widths: {subnet id: (share of the feed-forward, quality)}."""

    name: str
    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    number_bytes: int
    widths: Mapping[str, tuple[float, float]]

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.number_bytes

    def weights(self, share: float = 1.0) -> float:
        """How many weights the linear layers of all blocks have at a share of the feed-forward."""
        attention = 2 * self.heads * self.head_dim + 2 * self.kv_heads * self.head_dim
        return self.layers * self.width * (attention + 3 * self.hidden * share)


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareProfile:
    """One worker, how `node_workers` of a node are linked, and nodes with each other.

    `flops_per_s` and `bytes_per_s` are what is reached: the data sheet's, times an assumed share.
    """

    name: str
    dated: str
    source: str
    flops_per_s: float
    bytes_per_s: float
    memory_bytes: float
    overhead_s: float
    node_workers: int
    link: Link
    network: Link

    @classmethod
    def load(cls, path: str | Path) -> HardwareProfile:
        """Read a TOML file (profiles/hardware/). Raises ProfileError that says what is wrong."""
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
            assumed, link = data["assumed"], data["link"]
            found = cls(
                name=str(data["name"]),
                dated=str(data["dated"]),
                source=str(data["source"]),
                flops_per_s=float(data["flops_per_s"]) * float(assumed["flops_share"]),
                bytes_per_s=float(data["bytes_per_s"]) * float(assumed["bytes_share"]),
                memory_bytes=float(data["memory_bytes"]),
                overhead_s=float(assumed["overhead_s"]),
                node_workers=int(link["workers"]),
                link=_link(link),
                network=_link(data["network"]),
            )
        except KeyError as error:
            raise ProfileError(f"hardware profile {path} lacks {error}") from None
        except (TypeError, ValueError) as error:
            raise ProfileError(f"hardware profile {path} is malformed: {error}") from None
        speeds = (found.flops_per_s, found.bytes_per_s, found.memory_bytes, found.node_workers)
        if not all(math.isfinite(value) and value > 0 for value in speeds):
            raise ProfileError(
                f"hardware profile {path}: speeds and sizes are {speeds}, allowed > 0"
            )
        return found

    def between(self, workers: int) -> Link:
        """Return the link between `workers` that exchange: the network if a node has fewer."""
        return self.link if workers <= self.node_workers else self.network

    def costs(
        self, shape: DecoderShape, *, shards: int = 1, stages: int = 1, micro_tokens: int = 256
    ) -> IterationCosts:
        """Return the roofline costs of a decoder on a grid of workers.

        Shards share keys and values, stages the blocks. The break-even context is where a decode's
        saved reads pay for its gathers.
        """
        head_bytes = shape.vocab * shape.width * shape.number_bytes
        head = self._curve(shape.vocab * shape.width, head_bytes)
        position_s = shape.token_bytes / self.bytes_per_s
        costs = IterationCosts(
            quality_kind="assumed",
            rungs=tuple(
                IterationCost(
                    subnet_id=subnet_id,
                    quality=quality,
                    linear=self._curve(
                        shape.weights(share), shape.weights(share) * shape.number_bytes
                    ),
                    head=head,
                    fixed_s=self.overhead_s,
                    position_s=position_s,
                    pair_s=4 * shape.layers * shape.heads * shape.head_dim / self.flops_per_s,
                )
                for subnet_id, (share, quality) in shape.widths.items()
            ),
        )
        if shards * stages == 1:
            return costs
        link = self.between(shards)
        part_bytes = shape.heads * (shape.head_dim + 1) * 4
        gather_s = shape.layers * link.latency_s * math.ceil(math.log2(shards))
        gather_token_s = shape.layers * part_bytes * (shards - 1) / link.bytes_per_s
        saved_s = position_s * (1 - 1 / shards)  # per position of a decode's context
        even = math.ceil((gather_s + gather_token_s) / saved_s) if shards > 1 else 0
        hop = self.between(shards * stages)
        passed_bytes = micro_tokens * shape.width * shape.number_bytes
        return costs.on_workers(
            ParallelCost(
                shards=shards,
                stages=stages,
                break_even_tokens=even,
                gather_s=gather_s + gather_token_s,
                gather_token_s=gather_token_s,
                hop_s=(hop.latency_s + passed_bytes / hop.bytes_per_s) * (stages > 1),
                micro_tokens=micro_tokens,
            )
        )

    def capacity_tokens(self, shape: DecoderShape, *, shards: int = 1, stages: int = 1) -> int:
        """Return for how many tokens of keys and values a grid has memory; 0: not even weights."""
        weights = shape.weights() / stages + 2 * shape.vocab * shape.width
        free_bytes = self.memory_bytes * _USABLE - weights * shape.number_bytes
        return max(0, int(free_bytes / (shape.token_bytes / stages))) * shards

    def _curve(self, weights: float, weight_bytes: float) -> CostCurve:
        """Seconds by rows: reading the weights once, or two operations for each of them and row."""
        read_s, row_s = weight_bytes / self.bytes_per_s, 2 * weights / self.flops_per_s
        ridge = max(1, int(read_s / row_s))
        points = sorted({1, ridge, 2 * ridge, max(2 * ridge, 4096)})
        return CostCurve(tuple(points), tuple(max(read_s, n * row_s) for n in points))


_USABLE = 0.9  # of the memory: the rest is activations and the allocator's


def _link(data: Mapping[str, Any]) -> Link:
    return Link(bytes_per_s=float(data["bytes_per_s"]), latency_s=float(data["latency_s"]))


def hardware_profiles(folder: str | Path) -> Sequence[HardwareProfile]:
    """Return all profiles of a folder, by file name. Raises ProfileError as `load`."""
    return [HardwareProfile.load(path) for path in sorted(Path(folder).glob("*.toml"))]
