"""Each slicing operator equals the plain layer built at the smaller size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from subnetact import insert_operators
from supernet.layers.blocks import KernelChoice, SamePadConv2d


def register(net: nn.Module, shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """Insert the operators and make one subnet current."""
    for name, operator in insert_operators(net.eval()).operators.items():
        operator.register(f"{name}.", shapes)  # type: ignore[call-arg]
    return net


@torch.inference_mode()
def test_layer_norm_and_embedding_read_leading_slices() -> None:
    table, norm = nn.Embedding(9, 6), nn.LayerNorm(6, eps=1e-3)
    norm.weight.normal_()
    norm.bias.normal_()
    small_table, small_norm = nn.Embedding(9, 4), nn.LayerNorm(4, eps=1e-3)
    small_table.weight.copy_(table.weight[:, :4])
    small_norm.weight.copy_(norm.weight[:4])
    small_norm.bias.copy_(norm.bias[:4])
    ids = torch.tensor([[1, 8, 3]])
    expected = small_norm(small_table(ids))
    net = nn.Sequential(table, norm)
    register(net, {"0.weight": (9, 4), "1.weight": (4,), "1.bias": (4,)})
    assert torch.equal(net(ids), expected)


@pytest.mark.parametrize(("size", "stride"), [(7, 2), (8, 2), (9, 3)])
@torch.inference_mode()
def test_a_same_padded_convolution_pads_a_slice_as_it_pads_the_whole(
    size: int, stride: int
) -> None:
    whole, small = SamePadConv2d(6, 6, 5, stride, 6), SamePadConv2d(4, 4, 5, stride, 4)
    small.weight.copy_(whole.weight[:4])
    x = torch.randn(2, 4, size, size, generator=torch.Generator().manual_seed(0))
    expected = small(x)
    assert expected.shape[-1] == -(-size // stride)
    net = register(nn.Sequential(whole), {"0.weight": (4, 1, 5, 5)})
    assert torch.equal(net(x), expected)


@torch.inference_mode()
def test_only_the_kernel_of_the_subnet_runs() -> None:
    choice = KernelChoice(4, (3, 5, 7), 1)
    x = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    expected = nn.functional.conv2d(x, choice["5"].weight[:3], padding=2, groups=3)
    net = register(nn.Sequential(choice), {"0.5.weight": (3, 1, 5, 5)})
    torch.testing.assert_close(net(x), expected)


def test_a_layer_norm_over_several_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"LayerNorm over \(2, 3\) is not supported"):
        insert_operators(nn.Sequential(nn.LayerNorm((2, 3))))
