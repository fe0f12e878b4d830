"""The pooled residual network against the same thing written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from supernet import cost, define_supernet, extract


def _norm(x: torch.Tensor, state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])


def test_a_forward_pass_is_what_the_recipe_says() -> None:
    definition = define_supernet("pooled_resnet_cifar", widths=(16, 24), depths=(2, 1))
    torch.manual_seed(0)
    net = definition.build().eval()
    state = net.state_dict()
    x = torch.randn(2, 3, 32, 32)
    y = F.relu(_norm(F.conv2d(x, state["stem.weight"]), state, "bn"))
    assert y.shape[-1] == 31
    for block in ("layer1.0", "layer1.1", "layer2.0"):
        pools, before = block.endswith(".0"), y
        y = F.conv2d(y, state[f"{block}.conv1.weight"], padding=1)
        y = F.relu(_norm(y, state, f"{block}.bn1"))
        y = F.max_pool2d(y, 2) if pools else y
        y = _norm(F.conv2d(y, state[f"{block}.conv2.weight"], padding=1), state, f"{block}.bn2")
        y = F.relu(y if pools else y + before)
    assert y.shape == (2, 24, 7, 7)
    logits = F.linear(y.amax((2, 3)), state["fc.weight"], state["fc.bias"])
    torch.testing.assert_close(net(x), logits)
    smaller = definition.space.smallest
    assert extract(net.state_dict(), definition, smaller)(x).shape == (2, 10)


def test_the_cifar_variant_spans_four_to_237_million_macs() -> None:
    definition = define_supernet("pooled_resnet_cifar")
    sizes = [
        cost(definition, a).macs for a in (definition.space.smallest, definition.space.largest)
    ]
    assert sizes == [pytest.approx(4.0e6, rel=0.02), pytest.approx(237.5e6, rel=0.002)]


def test_a_resolution_that_cannot_be_halved_that_often_is_refused() -> None:
    with pytest.raises(ValueError, match="resolution is 8, too small to be halved 3 times"):
        define_supernet("pooled_resnet_cifar", resolution=8)
