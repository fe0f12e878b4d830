"""`WholeWeights`: what lies on the device whole, and once, for every subnet.

Parameters of layers that are no convolution sites, of sites that are products of matrices in the
packing `one_copy`; and, where norms are not folded into slices, two numbers per channel and subnet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from subnetact.cuda.accelerator import Accelerator
from subnetact.cuda.cuda_slice import slice_of
from subnetact.norms import Affine, FoldedNorms
from subnetact.program import ConvSite
from supernet.arch import Arch
from supernet.definition import SupernetDefinition
from supernet.slicing import leading_slice


class WholeWeights:
    """Filled subnet by subnet; read by any thread."""

    def __init__(
        self,
        definition: SupernetDefinition,
        state: Mapping[str, torch.Tensor],
        norms: FoldedNorms,
        accelerator: Accelerator,
        *,
        packing: str,
        dtype: torch.dtype,
        classifier: str | None,
    ):
        """Take from `state`, in `dtype`; the layer `classifier` in float32."""
        self.tensors: dict[str, torch.Tensor] = {}
        self._definition = definition
        self._state = state
        self._norms = norms
        self._accelerator = accelerator
        self._packing = packing
        self._dtype = dtype
        self._classifier = classifier
        self._affines: dict[str, torch.Tensor] = {}  # of all norms of a subnet

    @property
    def num_bytes(self) -> int:
        """Bytes on the device."""
        held = (*list(self.tensors.values()), *list(self._affines.values()))
        return sum(tensor.nbytes for tensor in held)

    def place(self, arch: Arch, sites: Sequence[ConvSite]) -> None:
        """Put on the device what a subnet needs and is not there yet.

        Raises torch.OutOfMemoryError where that is more than fits.
        """
        shapes = self._definition.parameter_shapes(arch), self._definition.buffer_shapes(arch)
        names = whole_names((name for each in shapes for name in each), sites, self._packing)
        device = self._accelerator.device
        with self._accelerator.computing():
            for name in names:
                if name not in self.tensors:
                    tensor = self._state[name].detach()
                    is_classifier = name.rpartition(".")[0] == self._classifier
                    dtype = whole_dtype(tensor.dtype, self._dtype, is_classifier=is_classifier)
                    self.tensors[name] = tensor.to(device, dtype)
            if self._packing != "folded" and arch.subnet_id not in self._affines:
                self._affines[arch.subnet_id] = self._norms.flat(arch.subnet_id).to(device)

    def affines(self, arch: Arch) -> dict[str, Affine]:
        """Return a subnet's norms on the device, views; none where they are folded into slices."""
        flat = self._affines.get(arch.subnet_id)
        return {} if flat is None else self._norms.affines(arch, flat)

    def matrix(self, site: ConvSite) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return weight (O, I) and bias (O,) of a site: views of the whole, whose rows are longer.

        Raises KeyError for a site that was not placed.
        """
        out, into = site.geometry.weight_shape[:2]
        weight = leading_slice(self.tensors[f"{site.layer}.weight"][:, :, 0, 0], (out, into))
        if not site.has_bias:
            return weight, None
        return weight, leading_slice(self.tensors[f"{site.layer}.bias"], (out,))


def whole_names(names: Iterable[str], sites: Iterable[ConvSite], packing: str) -> list[str]:
    """Return which of a subnet's tensors lie on the device whole: those of no slice and no norm."""
    elsewhere: set[str | None] = set()
    for site in sites:
        elsewhere.add(site.norm)
        if slice_of(site, "", packing, torch.float32) is not None:
            elsewhere.add(site.layer)
    return [name for name in names if name.rpartition(".")[0] not in elsewhere]


def whole_dtype(own: torch.dtype, wanted: torch.dtype, *, is_classifier: bool) -> torch.dtype:
    """Return in which dtype a tensor lies on the device."""
    if not own.is_floating_point:
        return own
    return torch.float32 if is_classifier else wanted
