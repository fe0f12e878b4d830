"""AdamW equals torch's, and its update is linear in the ramp's weight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from supernet import define_supernet
from training.config import TrainConfig
from training.data.data import load_dataset
from training.trainer.adamw import AdamW, is_decayed
from training.trainer.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]
OPTIONS = {"eps": 1e-8, "weight_decay": 0.1}


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (5, 3), "b": (5,)}
    return {n: nn.Parameter(torch.randn(s, generator=generator)) for n, s in shapes.items()}


def test_with_one_gradient_it_is_torchs() -> None:
    ours, theirs = parameters(), parameters()
    adamw = AdamW(ours, beta1=0.9, beta2=0.99, **OPTIONS)
    reference = torch.optim.AdamW(
        [
            {"params": [theirs["a"]], "weight_decay": 0.1},
            {"params": [theirs["b"]], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.99),
    )
    generator = torch.Generator().manual_seed(1)
    for step in range(50):
        lr = 0.01 / (1 + step)
        for name in ours:
            gradient = torch.randn(ours[name].shape, generator=generator)
            ours[name].grad, theirs[name].grad = gradient.clone(), gradient.clone()
        adamw.step(lr)
        for group in reference.param_groups:
            group["lr"] = lr
        reference.step()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-6)


def plain_step(p: dict[str, nn.Parameter], unweighted: dict[str, torch.Tensor], state: dict,
               lr: float, number: int) -> None:  # fmt: skip
    """Tensor by tensor, as the paper writes it."""
    for name, parameter in p.items():
        assert parameter.grad is not None
        mean, square = state.setdefault(
            name, (torch.zeros_like(parameter), torch.zeros_like(parameter))
        )
        mean.lerp_(parameter.grad, 1.0 - 0.9)
        square.mul_(0.99).addcmul_(unweighted[name], unweighted[name], value=1.0 - 0.99)
        if is_decayed(name, parameter):
            parameter.mul_(1.0 - lr * 0.1)
        size = (square / (1.0 - 0.99**number)).sqrt_().add_(1e-8)
        parameter.addcdiv_(mean, size, value=-lr / (1.0 - 0.9**number))


def test_all_tensors_at_once_are_tensor_by_tensor() -> None:
    ours, theirs, state = parameters(), parameters(), {}
    adamw = AdamW(ours, beta1=0.9, beta2=0.99, **OPTIONS)
    generator = torch.Generator().manual_seed(1)
    for number in range(1, 20):
        unweighted: dict[str, torch.Tensor] = {}
        for name in ours:
            gradient = torch.randn(ours[name].shape, generator=generator)
            unweighted[name] = 2.0 * gradient
            ours[name].grad, theirs[name].grad = gradient.clone(), gradient.clone()
        adamw.step(0.01, unweighted)
        with torch.no_grad():
            plain_step(theirs, unweighted, state, 0.01, number)
    for name in ours:
        assert torch.equal(ours[name], theirs[name])


def test_places_and_class_tokens_do_not_decay() -> None:
    shapes = define_supernet("vit_tiny_patch16_224").parameter_shapes()
    decayed = {n for n, s in shapes.items() if is_decayed(n, torch.empty(s, device="meta"))}
    assert decayed
    assert all(name.endswith("weight") for name in decayed)
    assert not any("pos_embed" in name or "cls_token" in name for name in decayed)
    assert "patch_embed.pos_embed.weight" in shapes
    assert not any(".norm" in name for name in decayed)


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5])
def test_the_subnets_part_of_the_update_is_beta_times_that_of_the_full_weight(beta: float) -> None:
    full, subnets = torch.tensor([0.3]), torch.tensor([-1.1])

    def moved(weight: float) -> torch.Tensor:
        p = {"p": nn.Parameter(torch.zeros(1))}
        adamw = AdamW(p, beta1=0.9, beta2=0.99, eps=1e-12, weight_decay=0.0)
        p["p"].grad = full + weight * subnets
        adamw.step(1.0, {"p": full + subnets})
        return p["p"].detach()

    alone, whole = moved(0.0), moved(1.0)
    torch.testing.assert_close(moved(beta) - alone, beta * (whole - alone))
    # Without the second gradient, Adam's step has the same size whatever beta is: no ramp at all.
    p = {"p": nn.Parameter(torch.zeros(1))}
    p["p"].grad = beta * subnets
    AdamW(p, beta1=0.9, beta2=0.99, eps=1e-12, weight_decay=0.0).step(1.0)
    torch.testing.assert_close(p["p"].detach(), torch.ones(1))


def test_in_the_ramp_the_second_moment_sees_the_unweighted_gradients(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    squares = []
    for ramp_epochs in (0.0, 2.0):  # weight 1 from the start, and a weight near 0
        out = tmp_path / str(ramp_epochs)
        out.mkdir()
        config = make_config(
            optimizer={"name": "adamw", "lr": 1e-3},
            schedule={"delay": 0.0, "ramp_epochs": ramp_epochs, "sort_channels": False},
        )
        trainer = Trainer(config, define_supernet("resnet_tiny"), load_dataset("digits"), out)
        steps = iter((False, True))
        trainer.run(should_stop=lambda steps=steps: next(steps))
        squares.append(trainer._optimization.state().square)
    for name, square in squares[0].items():
        torch.testing.assert_close(square, squares[1][name], rtol=2e-3, atol=1e-9)
