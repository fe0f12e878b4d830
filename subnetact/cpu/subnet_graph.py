"""`subnet_graph`: one subnet's network as an ONNX model: a template with its initialisers.

The initialisers are leading slices of the supernet's tensors, as `Subgraph` names them; the
subnet's own norm statistics are folded into its convolutions, in float64. The plain twin is
`supernet.subnets.extract`.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import torch
from onnx import TensorProto

from subnetact.cpu.graph_template import GraphTemplate
from subnetact.cpu.graph_writer import Fill
from supernet.arch import Arch
from supernet.definition import SupernetDefinition
from supernet.slicing import leading_slice


def subnet_graph(
    template: GraphTemplate,
    definition: SupernetDefinition,
    arch: Arch,
    state: Mapping[str, torch.Tensor],
    norm_statistics: Mapping[str, torch.Tensor],
) -> onnx.ModelProto:
    """Return the model of `arch`, whose topology must be the template's.

    `state` is the supernet's state_dict (16-bit tensors are widened), `norm_statistics` the
    subnet's running statistics by buffer name. Raises KeyError for a missing tensor, ValueError
    for an arch outside the space.
    """
    tensors = _Tensors(definition, arch, state, norm_statistics)
    model = onnx.ModelProto()
    model.CopyFrom(template.model)
    widths: dict[str, int] = {}
    for fill in template.fills:
        array = _filled(fill, tensors)
        if fill.kind == "weight":
            widths[fill.name] = array.shape[0]
        model.graph.initializer.append(_initialiser(fill.name, array))
    for node in model.graph.node:
        if node.op_type == "Conv":
            _set_groups(node, widths[node.input[1]])
    return model


class _Tensors:
    """A subnet's tensors by name, in float32; slices, so nothing is copied."""

    def __init__(
        self,
        definition: SupernetDefinition,
        arch: Arch,
        state: Mapping[str, torch.Tensor],
        norm_statistics: Mapping[str, torch.Tensor],
    ):
        self._shapes = {**definition.buffer_shapes(arch), **definition.parameter_shapes(arch)}
        self._state = state
        self._own = norm_statistics

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._own:
            return self._own[name].float()
        return leading_slice(self._state[name].detach(), self._shapes[name]).float()

    def affine(self, norm: str, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scale and shift per channel of a BatchNorm in eval mode, float64 (C,)."""
        weight, bias, mean, var = (
            self[f"{norm}.{key}"].double()
            for key in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / (var + eps).sqrt()
        return scale, bias - mean * scale


def _filled(fill: Fill, tensors: _Tensors) -> torch.Tensor:
    if fill.kind == "plain":
        return tensors[fill.tensor]
    if fill.kind == "transposed":
        return tensors[fill.tensor].T
    if not fill.norm:
        return tensors[fill.tensor]
    scale, shift = tensors.affine(fill.norm, fill.eps)
    if fill.kind == "weight":
        weight = tensors[fill.tensor]  # (out, in per group, kernel, kernel)
        return weight * scale.float().view(-1, 1, 1, 1)
    if not fill.tensor:
        return shift.float()
    return (tensors[fill.tensor].double() * scale + shift).float()


def _initialiser(name: str, tensor: torch.Tensor) -> onnx.TensorProto:
    proto = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=tensor.shape)
    proto.raw_data = tensor.contiguous().numpy().tobytes()
    return proto


def _set_groups(node: onnx.NodeProto, width: int) -> None:
    """Set the groups of a depthwise convolution, which are its width; others have one."""
    for attribute in node.attribute:
        if attribute.name == "group" and attribute.i > 1:
            attribute.i = width
