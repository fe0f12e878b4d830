"""`PackedSupernet`: any subnet of one resident supernet, each slice in the best form at hand.

A subnet that is run for the first time is traced (`Program`, tens of milliseconds, kept for the
last `max_programs` subnets). After that, making it current is one look-up: the calls of its sites
are chosen when the residency changes, not when the subnet is actuated.

Packed layouts depend on the thread count, so slices are listed, loaded and run with one and the
same (`torch.get_num_threads`); with another the result is the same, only slower.

For each site a folded slice of its own is taken before a shared one, and a view where neither is
resident. All forms give the same result (`tests/subnetact/cpu/test_packed_supernet.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from subnetact.cache import SLICE_PACKINGS, ResidentSlice, SliceKey, SubgraphCache
from subnetact.cpu.packed_site_calls import (
    SiteWeights,
    folded_call,
    pack_folded,
    pack_shared,
    shared_call,
    views_call,
)
from subnetact.cpu.packing import is_available, layout
from subnetact.cpu.resident_weights import wide_slice
from subnetact.norms import Affine, FoldedNorms
from subnetact.program import ConvSite, Program, SiteCall
from subnetact.traced_supernet import TracedSupernet
from supernet.arch import Arch
from supernet.definition import SupernetDefinition
from supernet.slicing import leading_slice

_FLOAT_BYTES = 4


class PackedSlice(NamedTuple):
    """A slice that could be made resident: its key, its bytes, and what packing it needs."""

    key: SliceKey
    num_bytes: int
    site: ConvSite
    subnet_id: str


class Binding:
    """A subnet's program with one call per site, chosen for one state of the cache."""

    __slots__ = ("calls", "hits", "lookups", "program", "version")

    def __init__(self, program: Program, calls: list[SiteCall], hits: int, version: int):
        self.program = program
        self.calls = calls
        self.hits = hits
        self.lookups = len(calls)
        self.version = version


class PackedSupernet(TracedSupernet[Binding]):
    """Runs registered subnets on a CPU, on packed slices where they are resident."""

    def __init__(
        self,
        definition: SupernetDefinition,
        state: Mapping[str, torch.Tensor],
        norms: FoldedNorms,
        cache: SubgraphCache,
        *,
        max_programs: int = 64,
    ):
        """Serve views of `state` (the supernet's tensors, on the CPU, channels-last is faster)."""
        super().__init__(definition, state, norms, cache, max_programs=max_programs)

    def register(self, arch: Arch, norm_statistics: Mapping[str, torch.Tensor]) -> str:
        """Make a subnet servable and return its id; costs its folded norms, nothing else.

        Raises ValueError when `arch` is outside the space, or statistics are missing.
        """
        self._definition.space.validate(arch)
        if arch.subnet_id not in self._archs:
            self.norms.add(arch, norm_statistics)
            self._archs[arch.subnet_id] = arch
        return arch.subnet_id

    def run(self, subnet_id: str, x: torch.Tensor) -> torch.Tensor:
        """Run a subnet on its normalised, channels-last input; (B, num_classes) logits.

        Raises KeyError for a subnet that is not registered.
        """
        binding = self.actuate(subnet_id)
        y = binding.program.run(x, binding.calls)
        self.cache.count(binding.lookups, binding.hits)
        return y

    def slices(self, subnet_id: str, packing: str = "folded") -> tuple[PackedSlice, ...]:
        """Return the slices that a subnet would use, in order of execution.

        `folded` folds where there is a norm; a site without one has only a shared slice. Empty
        where this build of torch cannot pack. Raises KeyError, ValueError for another packing.
        """
        if packing not in SLICE_PACKINGS:
            raise ValueError(f"packing is {packing!r}, allowed {', '.join(SLICE_PACKINGS)}")
        if not is_available():
            return ()
        return tuple(
            _slice(site, subnet_id, is_folded=packing == "folded" and site.norm is not None)
            for site in self._program(subnet_id).sites
        )

    def load(self, slices: Iterable[PackedSlice]) -> int:
        """Make slices resident, in order, as far as the budget has room; return how many are."""
        return sum(self._load(wanted) for wanted in slices)

    def random_input(self, subnet_id: str, batch_size: int) -> torch.Tensor:
        """Return a normalised input of a registered subnet to time it with: (B, C, H, W)."""
        x = self._definition.example_input(self.arch(subnet_id), batch_size)
        if not x.is_floating_point():
            return x
        return torch.rand(x.shape).contiguous(memory_format=torch.channels_last)

    def site_call(self, wanted: PackedSlice, *, packed: bool) -> SiteCall:
        """Return the call of one site on views, or on a slice packed for this call alone."""
        weights = self._weights(wanted.site, self.norms.affines(self._archs[wanted.subnet_id]))
        if not packed:
            return views_call(wanted.site, weights)
        if wanted.key.owner is None:
            return shared_call(wanted.site, weights, pack_shared(wanted.site, weights))
        return folded_call(wanted.site, pack_folded(wanted.site, weights))

    def _load(self, wanted: PackedSlice) -> bool:
        affines = self.norms.affines(self._archs[wanted.subnet_id])
        weights = self._weights(wanted.site, affines)
        make = pack_shared if wanted.key.owner is None else pack_folded
        return self.cache.load(wanted.key, wanted.num_bytes, lambda: make(wanted.site, weights))

    def _bind(self, subnet_id: str) -> Binding:
        program = self._program(subnet_id)
        version, resident = self.cache.snapshot()
        affines = self.norms.affines(self._archs[subnet_id])
        calls: list[SiteCall] = []
        hits = 0
        for site in program.sites:
            call, is_hit = self._call(subnet_id, site, resident, affines)
            calls.append(call)
            hits += is_hit
        return Binding(program, calls, hits, version)

    def _trace(self, arch: Arch) -> Program:
        return Program(self._definition, arch, self._state, wide_slice)

    def _call(
        self,
        subnet_id: str,
        site: ConvSite,
        resident: Mapping[SliceKey, ResidentSlice],
        affines: Mapping[str, Affine],
    ) -> tuple[SiteCall, bool]:
        """Choose the best form of one site that is resident, and say whether it is packed."""
        weights = self._weights(site, affines)
        if resident:
            folded = resident.get(_key(site, subnet_id)) if site.norm is not None else None
            if folded is not None:
                return folded_call(site, folded), True
            shared = resident.get(_key(site, None))
            if shared is not None:
                return shared_call(site, weights, shared), True
        return views_call(site, weights), False

    def _weights(self, site: ConvSite, affines: Mapping[str, Affine]) -> SiteWeights:
        weight = leading_slice(self._state[f"{site.layer}.weight"], site.geometry.weight_shape)
        channels = site.geometry.weight_shape[:1]
        bias = leading_slice(self._state[f"{site.layer}.bias"], channels) if site.has_bias else None
        if site.norm is None:
            return SiteWeights(weight, bias, None, None)
        gamma = leading_slice(self._state[f"{site.norm}.weight"], channels)
        return SiteWeights(weight, bias, affines[site.norm], gamma)


def _key(site: ConvSite, owner: str | None) -> SliceKey:
    return SliceKey(site.layer, site.geometry.weight_shape, layout(site.geometry)[0], owner)


def _slice(site: ConvSite, subnet_id: str, is_folded: bool) -> PackedSlice:
    num_bytes = layout(site.geometry)[1]
    if is_folded:
        num_bytes += _FLOAT_BYTES * site.geometry.weight_shape[0]
    return PackedSlice(_key(site, subnet_id if is_folded else None), num_bytes, site, subnet_id)
