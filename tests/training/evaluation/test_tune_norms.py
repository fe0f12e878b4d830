from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from supernet import calibrate, define_supernet, extract
from training.config import DataConfig
from training.data.data import load_dataset
from training.evaluation.evaluate import network_input
from training.evaluation.tune_norms import Statistics, TuningOptions, _TunedSubnet, tune_norms
from training.trainer.shared_weights import SharedWeights

DEFINITION = define_supernet("resnet_tiny")
SPACE = DEFINITION.space
DATA = load_dataset("digits")
OPTIONS = TuningOptions(4.0, DataConfig(batch_size=64, augment=0.5))


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A supernet that was trained for a moment, its smallest subnet with it."""
    weights = SharedWeights(DEFINITION, device="cpu", seed=0)
    optimizer = torch.optim.SGD(weights.parameters.values(), lr=0.05, momentum=0.9)
    x = network_input(DATA.train.images, DATA.input, SPACE.largest.resolution)
    for batch in epoch_rows(len(x), 40):
        optimizer.zero_grad()
        for arch in (SPACE.largest, SPACE.smallest):
            F.cross_entropy(weights.forward(arch, x[batch]), DATA.train.labels[batch]).backward()
        optimizer.step()
    return weights.state()


def epoch_rows(count: int, steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randperm(count, generator=generator)[:128] for _ in range(steps)]


def calibrated(state: dict[str, torch.Tensor]) -> dict:
    x = network_input(DATA.train.images[:512], DATA.input, SPACE.largest.resolution)
    return {
        arch: calibrate(extract(state, DEFINITION, arch), x.split(64))
        for arch in (SPACE.smallest, SPACE.largest)
    }


def loss_of(state: dict[str, torch.Tensor], own: Statistics, teacher: Statistics) -> float:
    """Divergence of the smallest from the largest's probabilities on held-out images."""
    x = network_input(DATA.validation.images, DATA.input, SPACE.largest.resolution)
    with torch.no_grad():
        targets = torch.softmax(extract(state, DEFINITION, SPACE.largest, teacher)(x), 1)
        student = torch.log_softmax(extract(state, DEFINITION, SPACE.smallest, own)(x), 1)
        return float(F.kl_div(student, targets, reduction="batchmean"))


def test_tuning_brings_a_subnet_nearer_to_the_largest(state: dict[str, torch.Tensor]) -> None:
    before = calibrated(state)
    after = tune_norms(state, DEFINITION, before, DATA.train, DATA.input, OPTIONS)
    small, large = SPACE.smallest, SPACE.largest
    losses = [loss_of(state, own[small], before[large]) for own in (before, after)]
    assert losses[1] < 0.9 * losses[0]
    assert all(torch.equal(after[large][n], t) for n, t in before[large].items())
    variances = [t for n, t in after[small].items() if n.endswith("running_var")]
    assert all(bool((v >= 0).all()) for v in variances)


def test_tuned_statistics_do_what_the_tuned_vectors_did() -> None:
    """A scale and an offset of a subnet's own are other statistics under the shared vectors."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.randn(8))
        norm.weight[0] = 0.0  # nothing can be moved there
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    tuned = _TunedSubnet(nn.Sequential(norm), 8)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.normal_(std=0.3)
    x = torch.randn(2, 8, 4, 4)
    own = tuned.statistics()
    same = F.batch_norm(
        x, own["0.running_mean"], own["0.running_var"], norm.weight, norm.bias, eps=norm.eps
    )
    torch.testing.assert_close(tuned.subnet(x), same, atol=1e-4, rtol=1e-4)


def test_tuning_refuses_what_it_cannot_do(state: dict[str, torch.Tensor]) -> None:
    own = calibrated(state)
    with pytest.raises(ValueError, match="needs the statistics of d2-w1-e1-r8, which teaches"):
        tune_norms(
            state,
            DEFINITION,
            {SPACE.smallest: own[SPACE.smallest]},
            DATA.train,
            DATA.input,
            OPTIONS,
        )
    short = OPTIONS._replace(epochs=0.01)
    with pytest.raises(ValueError, match="less than one batch of 64"):
        tune_norms(state, DEFINITION, own, DATA.train, DATA.input, short)
