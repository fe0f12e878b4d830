from __future__ import annotations

import pytest
import torch

from supernet import SupernetDefinition, calibrate, extract


def test_statistics_are_the_pooled_moments_of_all_batches(
    tiny: SupernetDefinition, tiny_state: dict[str, torch.Tensor]
) -> None:
    subnet = extract(tiny_state, tiny, tiny.space.smallest)
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randn(n, 1, 8, 8, generator=generator) for n in (5, 3)]
    statistics = calibrate(subnet, batches)
    stem = torch.nn.functional.conv2d(torch.cat(batches), subnet.conv1.weight, padding=1)
    mean, var = stem.mean((0, 2, 3)), stem.var((0, 2, 3), correction=0)
    torch.testing.assert_close(statistics["bn1.running_mean"], mean.detach())
    torch.testing.assert_close(statistics["bn1.running_var"], var.detach())
    assert torch.equal(subnet.bn1.running_mean, statistics["bn1.running_mean"])


def test_calibration_leaves_an_ordinary_module_behind(
    tiny: SupernetDefinition, tiny_state: dict[str, torch.Tensor]
) -> None:
    subnet = extract(tiny_state, tiny, tiny.space.smallest)
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    statistics = calibrate(subnet, [x])
    again = extract(tiny_state, tiny, tiny.space.smallest, statistics)
    with torch.inference_mode():
        assert torch.equal(subnet(x), again(x))


def test_no_batch_is_an_error(
    tiny: SupernetDefinition, tiny_state: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate(extract(tiny_state, tiny, tiny.space.smallest), [])
