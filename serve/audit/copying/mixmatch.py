"""A student from scratch on few answers: MixMatch (Berthelot et al., NeurIPS 2019), small.

Labelled are the images that were asked about, with the answers as soft labels; unlabelled are
others of the attacker's, whose labels are guessed: the mean over two augmentations, sharpened at
T = 0.5. Both are mixed (Beta(0.75, 0.75), the larger part first); the loss of the guessed ones is
squared, its weight ramps up linearly to 20. An average of the weights (0.999) is judged. Ours
differs in size: a slim residual network, so that one run takes minutes of one core.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

_WIDTHS = (16, 32, 64)
_BATCH = 64
_STEPS = 1500
_TEMPERATURE, _ALPHA, _UNLABELLED_WEIGHT, _AVERAGE = 0.5, 0.75, 20.0, 0.999
_RATE, _DECAY = 2e-3, 4e-5
_SHIFT = 4


class _SlimBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(y)) + self.shortcut(x))


def _network(channels: int, classes: int) -> nn.Module:
    blocks: list[nn.Module] = []
    before = channels
    for place, width in enumerate(_WIDTHS):
        blocks.append(_SlimBlock(before, width, 1 if place == 0 else 2))
        before = width
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def mixmatch_student(
    labelled: np.ndarray,
    targets: np.ndarray,
    unlabelled: np.ndarray,
    others: np.ndarray,
    seed: int,
    *,
    steps: int = _STEPS,
) -> np.ndarray:
    """Train on images uint8 (N, C, H, W); return logits for `others`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = _network(labelled.shape[1], targets.shape[1])
    average = torch.optim.swa_utils.AveragedModel(
        net,
        multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(_AVERAGE),
        use_buffers=True,
    )
    optimiser = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=_DECAY)
    wanted = torch.from_numpy(targets.astype(np.float32))
    for step in range(steps):
        some = rng.integers(0, len(labelled), _BATCH)
        guessed_at = rng.integers(0, len(unlabelled), _BATCH)
        x = _augmented(labelled[some], rng)
        u = [_augmented(unlabelled[guessed_at], rng) for _ in range(2)]
        with torch.no_grad():
            guess = _sharpened(torch.stack([F.softmax(net(part), dim=1) for part in u]).mean(0))
        inputs = torch.cat([x, *u])
        labels = torch.cat([wanted[some], guess, guess])
        order = torch.from_numpy(rng.permutation(len(inputs)))
        part = float(rng.beta(_ALPHA, _ALPHA))
        part = max(part, 1 - part)
        logits = net(part * inputs + (1 - part) * inputs[order])
        mixed = part * labels + (1 - part) * labels[order]
        weight = _UNLABELLED_WEIGHT * step / steps
        known = F.cross_entropy(logits[:_BATCH], mixed[:_BATCH])
        unknown = F.mse_loss(F.softmax(logits[_BATCH:], dim=1), mixed[_BATCH:])
        optimiser.zero_grad()
        (known + weight * unknown).backward()
        optimiser.step()
        average.update_parameters(net)
    average.eval()
    with torch.inference_mode():
        parts = [average(_scaled(others[i : i + 500])) for i in range(0, len(others), 500)]
    return torch.cat(parts).numpy()


def _sharpened(guess: torch.Tensor) -> torch.Tensor:
    powered = guess ** (1 / _TEMPERATURE)
    return powered / powered.sum(dim=1, keepdim=True)


def _augmented(images: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Return images shifted and mirrored, one by one."""
    padded = np.pad(images, ((0, 0), (0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT)), "reflect")
    height, width = images.shape[2:]
    made = np.empty_like(images)
    for place in range(len(images)):
        row, column = rng.integers(0, 2 * _SHIFT + 1, 2)
        cut = padded[place, :, row : row + height, column : column + width]
        made[place] = cut[..., ::-1] if rng.random() < 0.5 else cut
    return _scaled(made)


def _scaled(images: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(np.ascontiguousarray(images)).float() - 127.5) / 63.75
