"""The first-order latency model of a SubGraph-Stationary accelerator (after SUSHI, MLSys'23).

latency(subnet, G) = sum over layers of max(MACs / rate, (weight bytes not in G + input bytes +
output bytes) / bandwidth), one byte per value. G is filled greedily by time saved per byte, whole
input depths of as many kernels as fit. It gives the table L[subnet][subgraph] without a device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from subnetact.program import Program
from supernet.arch import Arch
from supernet.definition import SupernetDefinition


class FirstOrderAccelerator(NamedTuple):
    """Compute rate in MAC/s and memory bandwidth in bytes/s."""

    rate_macs: float
    bandwidth_bytes: float


class Layer(NamedTuple):
    """One convolution of a subnet, by its name in the supernet; sizes at one byte per value."""

    name: str
    kernels: int
    channels: int
    kernel: int
    input_size: int
    macs: int
    io_bytes: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight."""
        return self.kernels * self.channels * self.kernel**2


Resident = Mapping[str, tuple[int, int]]  # {layer: (kernels, channels)}


def conv_layers(definition: SupernetDefinition, arch: Arch) -> list[Layer]:
    """Return the convolutions of a subnet, in order of execution."""
    layers: list[Layer] = []
    for site in Program.describe(definition, arch):
        kernels, channels, kernel, _ = site.geometry.weight_shape
        inputs, height, width = site.geometry.input_shape
        out_height, out_width = site.geometry.output_size
        io_bytes = inputs * height * width + kernels * out_height * out_width
        layers.append(
            Layer(site.layer, kernels, channels, kernel, height, site.geometry.macs, io_bytes)
        )
    return layers


def latency_s(layers: Sequence[Layer], resident: Resident, device: FirstOrderAccelerator) -> float:
    """Return the latency of one sample beside a resident subgraph."""
    return sum(
        max(
            layer.macs / device.rate_macs,
            (layer.weight_bytes - _held(layer, resident) + layer.io_bytes) / device.bandwidth_bytes,
        )
        for layer in layers
    )


def best_subgraph(
    layers: Sequence[Layer], budget_bytes: float, device: FirstOrderAccelerator
) -> dict[str, tuple[int, int]]:
    """Fill a buffer for one subnet, greedily by time saved per byte."""

    def gain(layer: Layer) -> float:
        compute_s = layer.macs / device.rate_macs
        fetched_s = (layer.weight_bytes + layer.io_bytes) / device.bandwidth_bytes
        streamed_s = layer.io_bytes / device.bandwidth_bytes
        saved_s = max(compute_s, fetched_s) - max(compute_s, streamed_s)
        return saved_s / layer.weight_bytes

    resident: dict[str, tuple[int, int]] = {}
    left = budget_bytes
    order = range(len(layers))
    for n in sorted(order, key=lambda n: (gain(layers[n]), n), reverse=True):
        layer = layers[n]
        per_kernel = layer.channels * layer.kernel**2
        kernels = min(layer.kernels, int(left // per_kernel))
        if gain(layer) > 0 and kernels > 0:
            resident[layer.name] = (kernels, layer.channels)
            left -= kernels * per_kernel
    return resident


def table(
    subnets: Sequence[Sequence[Layer]], device: FirstOrderAccelerator, budget_bytes: float
) -> list[tuple[float, list[float]]]:
    """Return per subnet (base latency, fraction saved beside each subnet's own best subgraph)."""
    subgraphs = [best_subgraph(layers, budget_bytes, device) for layers in subnets]
    rows: list[tuple[float, list[float]]] = []
    for layers in subnets:
        base_s = latency_s(layers, {}, device)
        rows.append((base_s, [1 - latency_s(layers, g, device) / base_s for g in subgraphs]))
    return rows


def _held(layer: Layer, resident: Resident) -> int:
    kernels, channels = resident.get(layer.name, (0, 0))
    return min(kernels, layer.kernels) * min(channels, layer.channels) * layer.kernel**2
