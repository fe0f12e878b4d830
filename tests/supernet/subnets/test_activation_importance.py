from __future__ import annotations

import pytest
import torch
from torch import nn

from supernet.family import ChannelGroup
from supernet.subnets.activation_importance import activation_order
from supernet.subnets.sort import importance_order

GROUP = ChannelGroup(name="inner", produced=(("0.weight", 0),), consumed=(("1.weight", 1),))


def test_a_channel_that_carries_nothing_is_last_however_large_its_reader() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.Conv2d(3, 1, 1, bias=False)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, 0.001, 3.0]).view(3, 1, 1, 1))
        net[1].weight.copy_(torch.tensor([1.0, 9.0, 0.5]).view(1, 3, 1, 1))
    x = torch.randn(4, 1, 5, 5)
    # By weights 9, 1, 0.5; by what is carried 0.009, 1, 1.5 times the input's root mean square.
    assert importance_order(net.state_dict(), [GROUP])["inner"] == [1, 0, 2]
    assert activation_order(net, [GROUP], x.split(2))["inner"] == [2, 0, 1]


def test_it_is_the_sum_over_outputs_of_weight_times_root_mean_square() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 5, bias=False)).eval()
    x = torch.randn(64, 4)
    hidden = net[0](x)
    scores = net[1].weight.abs().sum(0) * hidden.square().mean(0).sqrt()
    expected = torch.argsort(scores, descending=True).tolist()
    assert activation_order(net, [GROUP], [x[:10], x[10:]])["inner"] == expected
    assert not net[1]._forward_pre_hooks


def test_without_an_input_nothing_can_be_said() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5))
    with pytest.raises(ValueError, match="at least one batch"):
        activation_order(net, [GROUP], [])
