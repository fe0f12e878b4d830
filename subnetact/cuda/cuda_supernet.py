"""`CudaSupernet`: any subnet of a supernet whose weights need not all be on the device.

The weights stay in host memory. A convolution's slice (contiguous, channels-last, 16 bit unless
asked otherwise) is *resident* on the device, found in the `SubgraphCache` under its budget, or it
is *streamed* from page-locked memory just before it is used (`SliceStream`). What belongs to no
convolution site (classifiers, transformers) is always on the device, a classifier in float32:
logits that are rounded to 16 bit tie at the top. Residency changes cost, never results. Plain twin:
the extracted module in the same dtype.

`packing` is `folded` (norm folded in, a slice serves one subnet), `shared` (bare weights, a slice
serves every subnet that uses it) or `one_copy` (as `shared`, but 1x1 convolutions have no slices
and read the one weight of the supernet, whatever the width: `WholeWeights`). Slices, streams and
runs are for one thread at a time, see `CudaExecutor`; what only reads the cache is thread-safe.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from subnetact.cache import SLICE_PACKINGS, ResidentSlice, SliceKey, SubgraphCache
from subnetact.cuda.accelerator import Accelerator
from subnetact.cuda.cuda_site_calls import SiteKernel, matrix_kernel, site_kernel
from subnetact.cuda.cuda_slice import CudaSlice, slice_of
from subnetact.cuda.fused_sites import FusedSites
from subnetact.cuda.slice_layout import SliceLayout, fill_slice
from subnetact.cuda.slice_stream import SliceStream
from subnetact.cuda.whole_weights import WholeWeights
from subnetact.norms import FoldedNorms
from subnetact.program import ConvSite, Program, SiteCall
from subnetact.subnet_registry import SubnetRegistry
from supernet.arch import Arch
from supernet.definition import SupernetDefinition
from supernet.slicing import leading_slice

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True, slots=True)
class _HostSlice:
    key: SliceKey
    layout: SliceLayout
    flat: torch.Tensor


class CudaBinding:
    """A subnet's program with one call per site, chosen for one state of the cache."""

    def __init__(
        self,
        program: Program,
        calls: list[SiteCall],
        weights: Mapping[SliceKey, torch.Tensor],
        version: int,
        num_streamed: int,
    ):
        self.program = program
        self.calls = calls
        self.weights = weights  # of the resident slices that are read
        self.version = version
        self.num_streamed = num_streamed  # how many sites have a slice that is not resident
        self.following: dict = {}  # see SliceStream.begin


class CudaSupernet:
    """Registered subnets on a CUDA device, their slices resident or streamed layer by layer."""

    def __init__(
        self,
        definition: SupernetDefinition,
        state: Mapping[str, torch.Tensor],
        norms: FoldedNorms,
        cache: SubgraphCache,
        accelerator: Accelerator,
        *,
        packing: str = "folded",
        dtype: torch.dtype = torch.bfloat16,
        keep_host_slices: bool = True,
        max_programs: int = 64,
    ):
        """Serve `state` (the supernet's tensors, float32 in host memory).

        `keep_host_slices`: slices that were resident once stay in page-locked memory, so that
        loading them again is one copy. Raises ValueError for a packing or dtype that is not known.
        """
        if packing not in SLICE_PACKINGS:
            raise ValueError(f"packing is {packing!r}, allowed {', '.join(SLICE_PACKINGS)}")
        if dtype not in DTYPES:
            names = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
            raise ValueError(f"dtype is {str(dtype).removeprefix('torch.')}, allowed {names}")
        if max_programs < 1:
            raise ValueError(f"max_programs is {max_programs}, allowed 1 or more")
        self.cache = cache
        self.norms = norms
        self.packing = packing
        self.dtype = dtype
        self.stream = SliceStream(accelerator, dtype)
        self.fused_sites = FusedSites(accelerator)
        self._definition = definition
        self._classifier = Program.classifier(definition)
        self._state = state
        self.whole = WholeWeights(
            definition,
            state,
            norms,
            accelerator,
            packing=packing,
            dtype=dtype,
            classifier=self._classifier,
        )
        self._accelerator = accelerator
        self._keep_host_slices = keep_host_slices
        self._max_programs = max_programs
        self._archs = SubnetRegistry[Arch]()
        self._sites: dict[str, tuple[tuple[ConvSite, CudaSlice | None], ...]] = {}
        self._longest = 0  # elements of the largest slice
        self._host: dict[SliceKey, _HostSlice] = {}
        self._programs: dict[str, Program] = {}
        self._bindings: dict[str, CudaBinding] = {}
        cache.on_eviction(self._bindings.clear)

    @property
    def subnet_ids(self) -> tuple[str, ...]:
        """Registered subnets, in order of registration."""
        return tuple(self._archs)

    @property
    def fixed_bytes(self) -> int:
        """Bytes on the device that are no slices: whole weights, norms, staging buffers."""
        return self.whole.num_bytes + self.stream.num_bytes

    @property
    def host_bytes(self) -> int:
        """Bytes of the slices kept in page-locked memory."""
        return sum(kept.flat.nbytes for kept in list(self._host.values()))  # read by any thread

    def arch(self, subnet_id: str) -> Arch:
        """Return a registered subnet's arch. Raises KeyError naming the registered ids."""
        return self._archs[subnet_id]

    @torch.inference_mode()
    def register(self, arch: Arch, norm_statistics: Mapping[str, torch.Tensor]) -> str:
        """Make a subnet servable and return its id; a known id is left as it is.

        Raises ValueError when `arch` is outside the space, or statistics are missing;
        torch.OutOfMemoryError when not even what can't be streamed fits on the device.
        """
        self._definition.space.validate(arch)
        subnet_id = arch.subnet_id
        if subnet_id in self._archs:
            return subnet_id
        self.norms.add(arch, norm_statistics)
        sites = Program.describe(self._definition, arch)
        self.whole.place(arch, sites)
        slices = [slice_of(site, subnet_id, self.packing, self.dtype) for site in sites]
        self._sites[subnet_id] = tuple(zip(sites, slices, strict=True))
        self._longest = max(self._longest, *(s.layout.num_elements for s in slices if s), 0)
        if self._keep_host_slices or self.stream.num_bytes:
            self.stream.reserve(self._longest)
        self._archs[subnet_id] = arch
        return subnet_id

    def slices(self, subnet_id: str) -> tuple[CudaSlice, ...]:
        """Return the slices that a subnet uses, in order of its sites. Raises KeyError."""
        self.arch(subnet_id)
        return tuple(found for _, found in self._sites[subnet_id] if found is not None)

    @torch.inference_mode()
    def load(self, slices: Iterable[CudaSlice]) -> int:
        """Make slices resident, in order, as far as the budget has room; return how many are."""
        return sum(self._load(wanted) for wanted in slices)

    def evict_others(self, keep: Iterable[SliceKey]) -> int:
        """Evict what is not in `keep`; return how many slices."""
        return self.cache.evict(self.cache.resident - frozenset(keep))

    def actuate(self, subnet_id: str) -> CudaBinding:
        """Return what runs a subnet now; one look-up unless residency changed or it is new."""
        binding = self._bindings.get(subnet_id)
        if binding is None or binding.version != self.cache.version:
            binding = self._bind(subnet_id)
        return binding

    def run(self, binding: CudaBinding, x: torch.Tensor) -> torch.Tensor:
        """Run a subnet on its input on the device; (B, num_classes) logits. One run at a time."""
        self.stream.begin(binding.following)
        y = binding.program.run(x, binding.calls)
        self.cache.count(len(binding.weights) + binding.num_streamed, len(binding.weights))
        return y

    def is_stale(self, weights: object) -> bool:
        """Whether a binding's `weights` are no longer what is resident; for `CudaGraphs.retire`."""
        assert isinstance(weights, Mapping), "the weights of a binding"
        resident = self.cache.snapshot()[1]
        return any(
            key not in resident or resident[key].weight is not weight
            for key, weight in weights.items()
        )

    # --- slices ----------------------------------------------------------------------------------

    def _load(self, wanted: CudaSlice) -> bool:
        def upload() -> ResidentSlice:
            host = self._host_slice(wanted, keep=self._keep_host_slices)
            with self._accelerator.computing():  # freed there too: see CudaAccelerator
                flat = torch.empty(
                    len(host.flat), dtype=self.dtype, device=self._accelerator.device
                )
                self._accelerator.copy(flat, host.flat)
            return ResidentSlice(*host.layout.views(flat), wanted.num_bytes)

        return self.cache.load(wanted.key, wanted.num_bytes, upload)

    def _host_slice(self, wanted: CudaSlice, *, keep: bool) -> _HostSlice:
        known = self._host.get(wanted.key)
        if known is not None:
            return known
        layout = wanted.layout
        flat = self._accelerator.pinned((layout.num_elements,), self.dtype)
        self._fill(flat, wanted)
        made = _HostSlice(wanted.key, layout, flat)
        if keep:
            self._host[wanted.key] = made
        return made

    def _fill(self, flat: torch.Tensor, wanted: CudaSlice) -> None:
        """Write a slice of the supernet's weights, with the norm where it is folded in."""
        layer, shape = wanted.site.layer, wanted.site.geometry.weight_shape
        weight = leading_slice(self._state[f"{layer}.weight"], shape)
        bias = None
        if wanted.site.has_bias:
            bias = leading_slice(self._state[f"{layer}.bias"], shape[:1])
        norm = None
        if wanted.key.owner is not None and wanted.site.norm is not None:
            norm = self.norms.affines(self._archs[wanted.subnet_id])[wanted.site.norm]
        fill_slice(flat, wanted.layout, weight, bias, norm)

    # --- programs --------------------------------------------------------------------------------

    def _program(self, subnet_id: str) -> Program:
        """Return a subnet's program; the least recently used ones are forgotten."""
        arch = self.arch(subnet_id)
        program = self._programs.pop(subnet_id, None)
        if program is None:
            state = {**self._state, **self.whole.tensors}
            program = Program(self._definition, arch, state, classifier=self._classifier)
        self._programs[subnet_id] = program  # youngest last
        while len(self._programs) > self._max_programs:
            oldest = next(iter(self._programs))
            del self._programs[oldest]
            self._bindings.pop(oldest, None)
        return program

    def _bind(self, subnet_id: str) -> CudaBinding:
        program = self._program(subnet_id)
        version, resident = self.cache.snapshot()
        affines = self.whole.affines(self.arch(subnet_id))
        calls: list[SiteCall] = []
        weights: dict[SliceKey, torch.Tensor] = {}
        choices = self.fused_sites if self._accelerator.has_fused_convolutions else None
        num_streamed, pointwise = 0, self._accelerator.pointwise
        for site, wanted in self._sites[subnet_id]:
            norm = affines.get(site.norm or "")
            if wanted is None:
                calls.append(
                    partial(matrix_kernel(site, norm, pointwise), *self.whole.matrix(site))
                )
                continue
            kernel = site_kernel(site, norm, choices, pointwise)
            found = resident.get(wanted.key)
            if found is not None:
                calls.append(partial(kernel, found.weight, found.bias))
                weights[wanted.key] = found.weight
                continue
            self.stream.reserve(self._longest)  # the first time: nothing was streamed before
            calls.append(_streamed(kernel, self.stream, self._host_slice(wanted, keep=True)))
            num_streamed += 1
        binding = CudaBinding(program, calls, weights, version, num_streamed)
        self._bindings[subnet_id] = binding
        if self.cache.version != version:  # evicted meanwhile: do not keep slices alive
            self._bindings.pop(subnet_id, None)
        return binding


def _streamed(kernel: SiteKernel, stream: SliceStream, source: _HostSlice) -> SiteCall:
    def call(x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        weight, bias = stream.take(source)
        y = kernel(weight, bias, x, other)
        stream.done(source)
        return y

    return call


def resident_bytes(slices: Iterable[CudaSlice]) -> int:
    """Bytes of a set of slices, each counted once."""
    return sum({s.key: s.num_bytes for s in slices}.values())


def supernet_bytes(definition: SupernetDefinition, dtype: torch.dtype) -> int:
    """Bytes of all parameters of the supernet in `dtype`: what budgets are fractions of."""
    sizes = (math.prod(shape) for shape in definition.parameter_shapes().values())
    return sum(sizes) * dtype.itemsize
