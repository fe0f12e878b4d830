"""Bytes, overlaps and the first-order table of SUSHI's six subnets, out of `Subgraph`.

The first-order latency model of a SubGraph-Stationary accelerator (after SUSHI, MLSys'23):
latency(subnet, G) = sum over layers of max(MACs / rate, (weight bytes not in G + input bytes +
output bytes) / bandwidth), one byte per value. G is filled greedily by time saved per byte, whole
input depths of as many kernels as fit. It gives the table L[subnet][subgraph] without a device.
"""

from __future__ import annotations

import functools
import json
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from serve.bench.actuation.six_subnets import SIX_SUBNETS
from subnetact.program import Program
from supernet import Arch, Subgraph, SupernetDefinition, define_supernet

MIB = 2.0**20
BYTES_MIB = (7.58, 12.21, 17.78, 25.62, 23.66, 27.47)  # int8 convolution weights
OVERLAP_MIB = (
    (7.58, 7.55, 7.58, 7.58, 7.58, 7.58),
    (7.55, 12.21, 12.21, 12.21, 12.21, 12.21),
    (7.58, 12.21, 17.78, 17.77, 15.31, 17.77),
    (7.58, 12.21, 17.77, 25.62, 20.50, 22.29),
    (7.58, 12.21, 15.31, 20.50, 23.66, 20.76),
    (7.58, 12.21, 17.77, 22.29, 20.76, 27.47),
)
GMACS = (0.60, 0.90, 1.79, 2.38, 3.67, 4.06)
# Saving in %, rows served, columns cache tuned for; 129.6 GMAC/s, 1.6 GB/s, 1.73 MB.
SAVINGS = (
    (8.5, (10.7, 2.4, 0.7, 0.6, 0.7, 0.3)),
    (12.6, (7.7, 7.1, 5.1, 0.7, 0.9, 0.2)),
    (21.4, (5.0, 5.0, 4.0, 0.7, 0.8, 0.2)),
    (28.3, (3.8, 3.8, 3.0, 3.0, 3.0, 2.6)),
    (35.5, (2.6, 2.0, 1.7, 1.7, 1.9, 1.4)),
    (39.7, (2.5, 2.6, 2.0, 1.6, 1.7, 1.6)),
)


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


def conv_weights(arch: Arch) -> Subgraph:
    """The convolution weights of a subnet: what SUSHI counts."""
    whole = Subgraph.of(define_supernet("ofa_resnet50"), arch)
    return whole.select(lambda name, box: len(box) == 4)


@pytest.fixture(scope="module")
def six() -> list[list[Layer]]:
    definition = define_supernet("ofa_resnet50")
    return [conv_layers(definition, arch) for arch in SIX_SUBNETS.values()]


def as_printed(arch: Arch) -> Subgraph:
    """The same under the printed numbers, which count layers that are there.

    Without the stem's residual convolution the stem's last
    one has the number that the residual one has elsewhere, so the two are taken for one layer.
    """
    boxes = dict(conv_weights(arch).boxes)
    if arch.depth[0] == 0:
        boxes["input_stem.1.conv.conv.weight"] = boxes.pop("input_stem.2.conv.weight")
    return Subgraph(boxes)


def test_bytes_and_overlaps_are_the_published_ones() -> None:
    subgraphs = [as_printed(arch) for arch in SIX_SUBNETS.values()]
    assert [round(s.num_bytes(1) / MIB, 2) for s in subgraphs] == list(BYTES_MIB)
    for a, row in zip(subgraphs, OVERLAP_MIB, strict=True):
        assert [round((a & b).num_bytes(1) / MIB, 2) for b in subgraphs] == list(row)
    assert round(functools.reduce(operator.and_, subgraphs).num_bytes(1) / MIB, 2) == 7.55


def test_by_name_the_stem_of_subnet_18_lies_whole_in_that_of_24() -> None:
    arch_18, arch_24 = SIX_SUBNETS["18"], SIX_SUBNETS["24"]
    by_name = (conv_weights(arch_18) & conv_weights(arch_24)).num_bytes(1)
    by_number = (as_printed(arch_18) & as_printed(arch_24)).num_bytes(1)
    assert by_name == conv_weights(arch_18).num_bytes(1)
    assert by_name - by_number == (64 - 24) * 24 * 9


def test_the_layers_of_a_program_are_those_of_the_subgraph(six: list[list[Layer]]) -> None:
    for layers, size, gmacs in zip(six, BYTES_MIB, GMACS, strict=True):
        assert round(sum(layer.weight_bytes for layer in layers) / MIB, 2) == size
        assert round(sum(layer.macs for layer in layers) / 1e9, 2) == gmacs


def test_the_first_order_model_gives_the_published_table(six: list[list[Layer]]) -> None:
    result = table(six, FirstOrderAccelerator(129.6e9, 1.6e9), 1.73e6)
    for (base_s, saved), (base_ms, expected) in zip(result, SAVINGS, strict=True):
        assert base_s * 1e3 == pytest.approx(base_ms, abs=0.051)
        assert [100 * s for s in saved] == pytest.approx(expected, abs=0.06)


def test_saving_vanishes_where_bandwidth_is_not_scarce(six: list[list[Layer]]) -> None:
    """The readings of the table: at most 1.3 % at 4.8 GB/s, none at 19.2, 6.7 % at 5x compute."""

    def best(rate: float, bandwidth: float, budget: float) -> float:
        rows = table(six, FirstOrderAccelerator(rate, bandwidth), budget)
        return 100 * max(max(saved) for _, saved in rows)

    assert best(129.6e9, 4.8e9, 1.73e6) == pytest.approx(1.3, abs=0.06)
    assert best(129.6e9, 19.2e9, 1.73e6) == pytest.approx(0.0, abs=0.01)
    assert best(648e9, 19.2e9, 4e6) == pytest.approx(6.7, abs=0.06)


def test_the_archs_are_those_derived_from_the_printed_shapes() -> None:
    folder = os.environ.get("SUPERNET_DATA_DIR")
    path = Path(folder or "") / "ofa_resnet50_six_subnets" / "layers.json"
    if folder is None or not path.is_file():
        pytest.skip("SUPERNET_DATA_DIR has no ofa_resnet50_six_subnets")
    for name, printed in json.loads(path.read_text())["subnets"].items():
        ours = SIX_SUBNETS[name.rpartition("-")[2]]
        assert list(ours.depth) == printed["arch"]["d"]
        assert list(ours.width) == printed["arch"]["w"]
        assert list(ours.expand) == [e for e in printed["arch"]["e"] if e is not None]
        assert ours.resolution == printed["input_size"]
        shapes = [
            (x["out_channels"], x["in_channels"], x["kernel"], x["input_size"])
            for x in printed["layers"]
        ]
        layers = conv_layers(define_supernet("ofa_resnet50"), ours)
        ours_printed = [(x.kernels, x.channels, x.kernel, x.input_size) for x in layers]
        assert sorted(ours_printed) == sorted(shapes)
