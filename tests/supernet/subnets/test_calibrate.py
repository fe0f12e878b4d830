from __future__ import annotations

from functools import partial

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


def test_the_moments_of_the_kernel_are_those_of_a_pass_of_our_own(
    tiny: SupernetDefinition, tiny_state: dict[str, torch.Tensor]
) -> None:
    """The plain way: every norm's input in float64, summed over all batches."""
    generator = torch.Generator().manual_seed(4)
    batches = [3.0 + 5.0 * torch.randn(n, 1, 8, 8, generator=generator) for n in (7, 4, 9)]
    for arch in (tiny.space.smallest, tiny.space.largest):
        statistics = calibrate(extract(tiny_state, tiny, arch), batches)
        plain = extract(tiny_state, tiny, arch)
        seen: dict[str, list[torch.Tensor]] = {}
        for name, norm in plain.named_modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.train()
                seen[name] = []
                norm.register_forward_pre_hook(partial(_keep, seen[name]))
        with torch.inference_mode():
            for x in batches:
                plain(x)
        for name, inputs in seen.items():
            values = torch.cat([x.transpose(0, 1).flatten(1) for x in inputs], 1)  # (C, all)
            mean, var = values.mean(1), values.var(1, correction=0)
            torch.testing.assert_close(
                statistics[f"{name}.running_mean"].double(), mean, rtol=1e-4, atol=1e-5
            )
            torch.testing.assert_close(
                statistics[f"{name}.running_var"].double(), var, rtol=1e-4, atol=1e-6
            )


def _keep(into: list[torch.Tensor], _: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
    into.append(args[0].double())
