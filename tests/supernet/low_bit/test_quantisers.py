"""Low-bit weights: their values, prefixes that stay balanced, which layers have them."""

import pytest
import torch

from supernet.definition import define_supernet
from supernet.low_bit.covered import NoLowBitError, low_bit_names
from supernet.low_bit.quantisers import QUANTISERS, quantise, row_signs


@pytest.fixture
def weight():
    return torch.randn(24, 40, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.1


def test_values_are_those_of_each_quantiser(weight):
    codes = {name: quantise(weight, name).codes for name in QUANTISERS}
    assert set(codes["binary"].unique().tolist()) == {-1, 1}
    assert set(codes["ternary"].unique().tolist()) == {-1, 0, 1}
    signed = codes["signed_binary"]
    assert set(signed[0::2].unique().tolist()) == {0, 1}
    assert set(signed[1::2].unique().tolist()) == {-1, 0}


def test_signed_binary_by_hand():
    """Thresholds are 0.05 of a row's largest; what is kept is of the row's sign; one scale."""
    weight = torch.tensor([[1.0, 0.04, -0.5, 0.05], [1.0, -0.04, -0.5, 0.0]])
    quantised = quantise(weight, "signed_binary")
    assert quantised.codes.tolist() == [[1, 0, 0, 1], [0, 0, -1, 0]]
    assert quantised.scale.tolist() == [torch.tensor((1.0 + 0.05 + 0.5) / 3).half().item()]
    scale = quantised.scale.item()
    assert quantised.dequantised().tolist() == [[scale, 0, 0, scale], [0, 0, -scale, 0]]


def test_ternary_and_binary_by_hand():
    weight = torch.tensor([[1.0, -0.8, 0.1, 0.1]])
    assert quantise(weight, "binary").codes.tolist() == [[1, -1, 1, 1]]
    assert quantise(weight, "binary").scale.item() == pytest.approx(0.5)
    assert quantise(weight, "ternary").codes.tolist() == [[1, -1, 0, 0]]  # 0.7 of the mean: 0.35
    assert quantise(weight, "ternary").scale.item() == pytest.approx(0.9, rel=1e-3)


def test_every_prefix_of_channels_has_both_signs_alike():
    for kept in range(1, 65):
        assert row_signs(64)[:kept].sum() == kept % 2


def test_a_row_has_a_scale_of_its_own_where_it_is_long():
    assert quantise(torch.randn(4, 256), "signed_binary").scale.shape == (4,)
    assert quantise(torch.randn(4, 255), "signed_binary").scale.shape == (1,)


def test_quantising_what_is_quantised_changes_nothing(weight):
    for name in QUANTISERS:
        once = quantise(weight, name)
        again = quantise(once.dequantised(), name)
        assert torch.equal(once.codes, again.codes)
        torch.testing.assert_close(once.scale, again.scale, rtol=1e-3, atol=0)


def test_a_row_of_zeros_stays_zero():
    for name in ("ternary", "signed_binary"):
        assert not quantise(torch.zeros(4, 300), name).dequantised().any(), name


def test_an_unknown_quantiser_is_named():
    with pytest.raises(
        ValueError, match="quantiser is 'int2', allowed binary, ternary, signed_binary"
    ):
        quantise(torch.ones(2, 2), "int2")


def test_first_and_last_layers_projections_and_gates_stay_float():
    resnet = low_bit_names(define_supernet("resnet20_cifar"))
    assert "conv1.weight" not in resnet
    assert not any("downsample" in name or name == "fc.weight" for name in resnet)
    assert set(resnet) >= {"layer1.0.conv1.weight", "layer3.2.conv2.weight"}
    mobile = define_supernet("mobilenetv3_large_100")
    names = low_bit_names(mobile)
    assert not any("conv_dw" in name or ".se." in name for name in names)
    assert any(name.endswith("conv_pw.weight") for name in names)
    decoder = low_bit_names(define_supernet("decoder_tiny"))
    assert all(".mlp." in name for name in decoder)
    assert len(decoder) == 3 * define_supernet("decoder_tiny").config.depth


def test_a_family_without_such_layers_is_refused():
    with pytest.raises(NoLowBitError, match="graph_sage has no layer for low-bit weights"):
        low_bit_names(define_supernet("graph_sage"))
