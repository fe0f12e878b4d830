"""`CudaSlice`: a slice of a site's weight that could be resident, and which sites have none.

In the packing `one_copy` a dense 1x1 convolution has no slice: it is a product of matrices, and a
matrix may lie in a wider one, so every subnet reads the supernet's own weight (`WholeWeights`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from subnetact.cache import SliceKey
from subnetact.cuda.slice_layout import SliceLayout, slice_layout
from subnetact.program import ConvSite


@dataclass(frozen=True, slots=True)
class CudaSlice:
    """A slice that could be resident: its key, where it lies in its memory, what it is made of."""

    key: SliceKey
    layout: SliceLayout
    site: ConvSite
    subnet_id: str

    @property
    def num_bytes(self) -> int:
        """Bytes on the device."""
        return self.layout.num_bytes


def slice_of(site: ConvSite, subnet_id: str, packing: str, dtype: torch.dtype) -> CudaSlice | None:
    """Return the slice of a site of a subnet, None where it reads the supernet's whole weight."""
    if packing == "one_copy" and is_matrix(site):
        return None
    is_folded = packing == "folded" and site.norm is not None
    layout = slice_layout(site, dtype, is_folded=is_folded)
    owner = subnet_id if is_folded else None
    key = SliceKey(site.layer, site.geometry.weight_shape, layout, owner)
    return CudaSlice(key, layout, site, subnet_id)


def is_matrix(site: ConvSite) -> bool:
    """Whether a convolution is the product of its input's rows and a matrix."""
    geometry = site.geometry
    is_pointwise = all(size == 1 for size in geometry.weight_shape[2:])
    return is_pointwise and geometry.groups == 1 and not any(geometry.padding)
