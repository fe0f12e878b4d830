"""`DeviceBytes`: what subnets take on a device in a packing, counted without allocating any of it.

Counts what `CudaSupernet` would hold with every slice resident and nothing streamed; buffers of
batches and graphs come on top. A subnet's shapes are read from its module on the meta device; which
norm follows which convolution is the same in every subnet, so the largest one is traced for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from subnetact.cache import SliceKey
from subnetact.cuda.cuda_slice import slice_of
from subnetact.cuda.whole_weights import whole_dtype, whole_names
from subnetact.program import ConvSite, Program
from supernet.arch import Arch
from supernet.definition import SupernetDefinition


class SubnetShapes(NamedTuple):
    """A subnet without its values: its sites, and its tensors by name on the meta device."""

    subnet_id: str
    sites: tuple[ConvSite, ...]
    tensors: Mapping[str, torch.Tensor]

    @property
    def num_norm_channels(self) -> int:
        """Channels of all norms that are folded into a scale and a shift."""
        means = (t for name, t in self.tensors.items() if name.endswith(".running_mean"))
        return sum(mean.numel() for mean in means)

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the extracted subnet in `dtype`."""
        floating = (t for t in self.tensors.values() if t.is_floating_point())
        return sum(tensor.numel() for tensor in floating) * dtype.itemsize


class SupernetShapes:
    """Shapes of any subnet of a supernet."""

    def __init__(self, definition: SupernetDefinition):
        self.whole = definition.on_meta().state_dict()
        self.classifier = Program.classifier(definition)
        self._definition = definition
        traced = Program.describe(definition, definition.space.largest)
        self._sites = {site.layer: site for site in traced}

    def of(self, arch: Arch) -> SubnetShapes:
        """Return a subnet's shapes; tens of milliseconds. Raises ValueError outside the space."""
        self._definition.space.validate(arch)
        module = self._definition.on_meta(arch)
        sites: list[ConvSite] = []
        for name, conv in module.named_modules():
            if isinstance(conv, nn.Conv2d) and name in self._sites:
                known = self._sites[name]
                geometry = replace(known.geometry, weight_shape=tuple(conv.weight.shape))
                sites.append(replace(known, geometry=geometry))
        return SubnetShapes(arch.subnet_id, tuple(sites), module.state_dict())


class ByteParts(NamedTuple):
    """Bytes of slices, of tensors that lie there whole, and of norms beside them."""

    slices: int
    whole: int
    norms: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.slices + self.whole + self.norms


class DeviceBytes:
    """The bytes of the subnets that were added, in one packing."""

    def __init__(
        self,
        supernet: SupernetShapes,
        packing: str,
        dtype: torch.dtype,
        norm_dtype: torch.dtype = torch.float32,
    ):
        self._supernet = supernet
        self._packing = packing
        self._dtype = dtype
        self._norm_dtype = norm_dtype
        self._slices: dict[SliceKey, int] = {}
        self._whole: dict[str, int] = {}
        self._norm_bytes = 0

    @property
    def parts(self) -> ByteParts:
        """What was added takes this."""
        return ByteParts(sum(self._slices.values()), sum(self._whole.values()), self._norm_bytes)

    @property
    def slice_keys(self) -> tuple[SliceKey, ...]:
        """The slices that are counted."""
        return tuple(self._slices)

    def add(self, subnet: SubnetShapes) -> None:
        """Count one more subnet; what it shares with others is counted once."""
        for site in subnet.sites:
            found = slice_of(site, subnet.subnet_id, self._packing, self._dtype)
            if found is not None:
                self._slices[found.key] = found.num_bytes
        for name in whole_names(subnet.tensors, subnet.sites, self._packing):
            tensor = self._supernet.whole[name]
            is_classifier = name.rpartition(".")[0] == self._supernet.classifier
            dtype = whole_dtype(tensor.dtype, self._dtype, is_classifier=is_classifier)
            self._whole[name] = tensor.numel() * dtype.itemsize
        if self._packing != "folded":
            self._norm_bytes += 2 * subnet.num_norm_channels * self._norm_dtype.itemsize
