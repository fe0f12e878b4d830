"""The three operators of SubNetAct (SuperServe, NSDI'25, section 3.1): LayerSelect, WeightSlice,
SubnetNorm.

Each replaces one module of a trained supernet, under the same name and with the same parameters.
Each keeps a short list with one entry per registered subnet: which blocks run, which view of the
weight is read, which statistics normalise. The current subnet is one number in a `Route` shared
by all of them, so making a subnet current costs one assignment whatever the number of layers, and
copies nothing. A route's number is per thread: a thread that actuates another subnet does not
disturb a batch that is running.

Differences from the paper: views are made when a subnet is registered, not on every call.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

from supernet.layers.blocks import BlockSequence, SamePadConv2d, pad_same
from supernet.slicing import leading_slice

Shapes = Mapping[str, tuple[int, ...]]


class Route(threading.local):
    """Which registered subnet is current in this thread; 0 is the first one registered."""

    index: int = 0


class LayerSelect(BlockSequence):
    """Runs the blocks of the current subnet, in order; the others are bypassed."""

    def __init__(self, blocks: Iterable[tuple[str, nn.Module]], route: Route):
        super().__init__()
        for name, block in blocks:
            self[name] = block
        self._route = route
        self._selected: list[tuple[nn.Module, ...]] = []

    def register(self, prefix: str, shapes: Shapes) -> None:
        """Add a subnet: a block runs when any of its parameters is in `shapes`."""
        present = {
            name[len(prefix) :].split(".", 1)[0] for name in shapes if name.startswith(prefix)
        }
        self._selected.append(tuple(block for name, block in self.items() if name in present))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self._selected[self._route.index]:
            x = block(x)
        return x


class WeightSlice(nn.Module):
    """Base of the layers that read a leading slice of their weight and bias.

    `views[i]` is (weight, bias) of the i-th registered subnet, or None where that subnet does
    not contain the layer.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self, layer: nn.Conv2d | nn.Linear | nn.LayerNorm | nn.RMSNorm | nn.Embedding, route: Route
    ):
        super().__init__()
        self.weight = layer.weight
        self.bias = None if isinstance(layer, nn.Embedding | nn.RMSNorm) else layer.bias
        self._route = route
        self.views: list[tuple[torch.Tensor, torch.Tensor | None] | None] = []

    def register(self, prefix: str, shapes: Shapes) -> None:
        """Add a subnet by the shapes of its parameters."""
        shape = shapes.get(f"{prefix}weight")
        if shape is None:
            self.views.append(None)
            return
        weight = leading_slice(self.weight.detach(), shape)
        bias = None if self.bias is None else leading_slice(self.bias.detach(), shape[:1])
        self.views.append((weight, bias))

    def _current(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        view = self.views[self._route.index]
        assert view is not None, "LayerSelect runs only blocks that the current subnet contains"
        return view


class Conv2dSlice(WeightSlice):
    """A convolution that reads a leading slice of its weight; (B, C, H, W) in and out."""

    def __init__(self, layer: nn.Conv2d, route: Route):
        super().__init__(layer, route)
        if layer.padding_mode != "zeros":
            raise ValueError(f"convolution padding mode {layer.padding_mode!r} is not supported")
        self._stride, self._padding = layer.stride, layer.padding
        self._dilation, self._groups = layer.dilation, layer.groups
        self._is_depthwise = layer.groups == layer.in_channels
        if layer.groups > 1 and not self._is_depthwise:
            raise ValueError(f"grouped convolution with {layer.groups} groups cannot be sliced")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self._current()
        groups = weight.shape[0] if self._is_depthwise and self._groups > 1 else self._groups
        return F.conv2d(x, weight, bias, self._stride, self._padding, self._dilation, groups)


class SamePadConv2dSlice(Conv2dSlice):
    """A `SamePadConv2d` that reads a leading slice of its weight."""

    def __init__(self, layer: SamePadConv2d, route: Route):
        super().__init__(layer, route)
        self._kernel = layer.kernel_size[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(pad_same(x, self._kernel, self._stride[0]))


class LinearSlice(WeightSlice):
    """A linear layer that reads a leading slice of its weight; (..., in) to (..., out)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self._current()
        return F.linear(x, weight, bias)


class LayerNormSlice(WeightSlice):
    """LayerNorm over the last dimension with leading slices of its vectors; (..., D) in and out.

    It has no statistics of its own, so nothing is kept per subnet but the views.
    """

    def __init__(self, layer: nn.LayerNorm, route: Route):
        super().__init__(layer, route)
        if len(layer.normalized_shape) != 1:
            raise ValueError(f"LayerNorm over {layer.normalized_shape} is not supported")
        self._eps = layer.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self._current()
        return F.layer_norm(x, weight.shape, weight, bias, self._eps)


class RMSNormSlice(WeightSlice):
    """RMSNorm over the last dimension with a leading slice of its weight; (..., D) in and out."""

    def __init__(self, layer: nn.RMSNorm, route: Route):
        super().__init__(layer, route)
        if len(layer.normalized_shape) != 1:
            raise ValueError(f"RMSNorm over {layer.normalized_shape} is not supported")
        self._eps = layer.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, _ = self._current()
        return F.rms_norm(x, weight.shape, weight, self._eps)


class EmbeddingSlice(WeightSlice):
    """An embedding that reads a leading slice of its table; (...) indices to (..., D)."""

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return F.embedding(indices, self._current()[0])


class SubnetNorm(nn.Module):
    """BatchNorm in eval mode with one mean and variance per registered subnet.

    Affine weights are shared: each subnet reads a leading slice of them.
    """

    def __init__(self, norm: nn.BatchNorm2d, route: Route):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.register_buffer("num_batches_tracked", norm.num_batches_tracked)
        self._eps = norm.eps
        self._route = route
        self.views: list[tuple[torch.Tensor, ...] | None] = []

    def register(self, prefix: str, shapes: Shapes, statistics: Mapping[str, torch.Tensor]) -> None:
        """Add a subnet by its parameter shapes and its own running statistics."""
        shape = shapes.get(f"{prefix}weight")
        if shape is None:
            self.views.append(None)
            return
        mean, var = statistics[f"{prefix}running_mean"], statistics[f"{prefix}running_var"]
        self.views.append(
            (
                mean.to(self.weight.device),
                var.to(self.weight.device),
                leading_slice(self.weight.detach(), shape),
                leading_slice(self.bias.detach(), shape),
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        view = self.views[self._route.index]
        assert view is not None, "LayerSelect runs only blocks that the current subnet contains"
        mean, var, weight, bias = view
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=self._eps)
