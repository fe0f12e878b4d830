"""The official Once-for-All files: elastic or static, with the current or the legacy naming.

An elastic file nests convolutions and BatchNorms of its elastic layers one level deeper than the
static network that it describes, and carries the matrices that turn a 7x7 kernel into a 5x5 and
that into a 3x3. Published files say `mobile_inverted_conv` where today's classes say `conv`. Here
both become the static naming, with the smaller kernels materialised (and, for export, back).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch.nn import functional as F

from supernet.definition import SupernetDefinition
from supernet.weights.naming import Naming, State

_LEGACY, _CURRENT = ".mobile_inverted_conv.", ".conv."
_MATRIX = re.compile(r"(.*)\.(\d)to(\d)_matrix$")
_KERNELS = re.compile(r"(.*\.conv_dw)\.(\d+)\.weight$")


def to_static(tensors: Mapping[str, torch.Tensor]) -> tuple[State, State]:
    """Return the tensors under static names, and the matrices by their own names."""
    named = {name.replace(_LEGACY, _CURRENT): tensor for name, tensor in tensors.items()}
    matrices = {name: tensor for name, tensor in named.items() if _MATRIX.match(name)}
    static = {name: tensor for name, tensor in named.items() if name not in matrices}
    if any(".bn.bn." in name for name in static):
        static = {_unnest(name): tensor for name, tensor in static.items()}
    return static, matrices


def to_elastic(
    state: Mapping[str, torch.Tensor], definition: SupernetDefinition, naming: Naming
) -> State:
    """Return the stored supernet as an elastic file's tensors, current naming.

    The matrices are those of least squares between the stored kernels. Raises ValueError when no
    matrix makes one kernel of another: they were trained independently.
    """
    largest = definition.on_meta(definition.space.largest).state_dict()
    static = naming.to_origin({name: state[name] for name in largest}, definition)
    everywhere = definition.family_name == "ofa_resnet50"
    elastic = {_nest(name, everywhere): tensor for name, tensor in static.items()}
    for conv, sizes in _kernel_sizes(definition).items():
        for large, small in pairwise(sizes):
            source, target = state[f"{conv}.{large}.weight"], state[f"{conv}.{small}.weight"]
            elastic[_matrix_name(naming, conv, large, small)] = _fit_matrix(source, target, conv)
    return elastic


def matrix_names(definition: SupernetDefinition, naming: Naming) -> list[str]:
    """The names of the matrices that an elastic file holds."""
    return [
        _matrix_name(naming, conv, large, small)
        for conv, sizes in _kernel_sizes(definition).items()
        for large, small in pairwise(sizes)
    ]


def materialise_kernels(
    state: Mapping[str, torch.Tensor],
    definition: SupernetDefinition,
    naming: Naming | None = None,
    matrices: Mapping[str, torch.Tensor] | None = None,
) -> State:
    """Add the smaller kernels to a state of the largest subnet, by `matrices` or centre crop."""
    complete = dict(state)
    for conv, sizes in _kernel_sizes(definition).items():
        for large, small in pairwise(sizes):
            matrix = None
            if matrices and naming is not None:
                matrix = matrices[_matrix_name(naming, conv, large, small)]
            kernel = _centre(complete[f"{conv}.{large}.weight"], small)  # (C, 1, small, small)
            if matrix is not None:
                kernel = F.linear(kernel.flatten(2), matrix).view_as(kernel)
            complete[f"{conv}.{small}.weight"] = kernel.contiguous()
    return complete


def _kernel_sizes(definition: SupernetDefinition) -> dict[str, list[int]]:
    """{name of a depthwise convolution: its kernel sizes, largest first}."""
    sizes: dict[str, list[int]] = {}
    for name in definition.parameter_shapes():
        if match := _KERNELS.match(name):
            sizes.setdefault(match[1], []).append(int(match[2]))
    return {conv: sorted(found, reverse=True) for conv, found in sizes.items()}


def _matrix_name(naming: Naming, conv: str, large: int, small: int) -> str:
    return naming.key(f"{conv}.{large}.weight").removesuffix("weight") + f"{large}to{small}_matrix"


def _centre(kernel: torch.Tensor, size: int) -> torch.Tensor:
    margin = (kernel.shape[-1] - size) // 2
    return kernel[..., margin : margin + size, margin : margin + size]


def _fit_matrix(large: torch.Tensor, small: torch.Tensor, conv: str) -> torch.Tensor:
    """The matrix that makes `small` (C, 1, k, k) of the centre of `large`, (k * k, k * k)."""
    size = small.shape[-1]
    if small.is_meta:
        return small.new_empty(size**2, size**2)
    source = _centre(large, size).flatten(1).double()  # (C, k * k)
    target = small.flatten(1).double()
    matrix = torch.linalg.lstsq(source, target, driver="gelsd").solution.T
    error = (F.linear(source, matrix) - target).abs().max()
    if error > 1e-3 * target.abs().max().clamp(min=1e-12):
        raise ValueError(
            f"{conv}: no matrix makes the {size}x{size} kernel of the larger one; an elastic OFA "
            "file cannot hold kernels that were trained independently: export one subnet instead"
        )
    return matrix.to(small.dtype)


def _nest(name: str, everywhere: bool) -> str:
    """Static to elastic name; in mobile networks only numbered blocks from 1 are elastic."""
    if not everywhere and (not name.startswith("blocks.") or name.startswith("blocks.0.")):
        return name
    name = re.sub(r"\.bn\.(\w+)$", r".bn.bn.\1", name)
    name = re.sub(r"\.conv\.weight$", ".conv.conv.weight", name)
    return re.sub(r"^classifier\.linear\.", "classifier.linear.linear.", name)


def _unnest(name: str) -> str:
    name = name.replace(".bn.bn.", ".bn.").replace(".linear.linear.", ".linear.")
    return re.sub(r"\.conv\.conv\.weight$", ".conv.weight", name)
